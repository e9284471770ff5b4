"""Which engine serves a model, chosen in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from allmem.errors import AllMemError, unknown_name
from allmem.opening import OpenedModel
from allmem.reading import recommendations, stop_ids
from allmem.serving.engine import Engine
from allmem.serving.installed import has_vllm, require_vllm

__all__ = ["ENGINES", "EngineSettings", "ServedModel", "open_served"]

ENGINES = ("auto", "embedded", "vllm")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine shares its time and memory out; ``None`` for its own choice."""

    slots: int | None = None
    """Sequences that are under way at once."""
    step_tokens: int | None = None
    """Tokens that are read in one step."""
    max_waiting: int | None = None
    """Requests that may wait for a slot."""
    keep: int | None = None
    """Texts that have ended whose states are kept; of the package's own engine."""

    def given(self) -> dict[str, Any]:
        """Those that were chosen."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ServedModel:
    """An engine, not started yet, and what a server must know of the model in it."""

    engine: Engine
    tokenizer: Any
    stop: frozenset[int]
    """Tokens that end an answer."""
    sampling: Mapping[bool, Mapping[str, Any]]
    """What the model's makers recommend, by whether it thinks before it answers."""


def open_served(
    engine: str, settings: EngineSettings, open_model: Callable[[], OpenedModel]
) -> ServedModel:
    """Open a model and give it to an engine.

    Args:
        engine: one of ``ENGINES``; ``auto`` takes vLLM where it is installed, unless the model has
            layers whose state grows, which vLLM cannot hold.

    Raises:
        AllMemError: if the engine is not installed, or the model cannot be opened or served.
    """
    if engine not in ENGINES:
        raise AllMemError(unknown_name("engine", engine, ENGINES))
    if engine == "vllm":
        # Before the model is loaded for it.
        require_vllm("use --engine embedded")
    opened = open_model()
    constant = all(mixed.capabilities.constant_state for mixed in opened.model.mixers())
    with_vllm = engine == "vllm" or (engine == "auto" and constant and has_vllm())
    if with_vllm and settings.keep is not None:
        raise AllMemError(
            f"keep = {settings.keep} is of the engine embedded; vLLM has a prefix cache of its own "
            "(vllm serve --enable-prefix-caching). Leave it out, or use --engine embedded"
        )
    return ServedModel(
        _vllm(opened, settings) if with_vllm else _embedded(opened, settings),
        opened.tokenizer,
        frozenset(stop_ids(opened.model, opened.tokenizer)),
        {thinking: recommendations(opened.model, thinking) for thinking in (False, True)},
    )


def _vllm(opened: OpenedModel, settings: EngineSettings) -> Engine:
    from allmem.serving.vllm_engine import VLLMEngine

    return VLLMEngine(opened, **settings.given())


def _embedded(opened: OpenedModel, settings: EngineSettings) -> Engine:
    from allmem.serving.embedded import EmbeddedEngine

    return EmbeddedEngine(
        opened.model, window=opened.window, chunk=opened.chunk, **settings.given()
    )
