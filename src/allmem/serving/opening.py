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

__all__ = [
    "ENGINES",
    "EngineSettings",
    "ServedModel",
    "make_engine",
    "open_served",
    "settled",
]

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
        engine: one of ``ENGINES``.

    Raises:
        AllMemError: if the engine is not installed, or the model cannot be opened or served.
    """
    if engine not in ENGINES:
        raise AllMemError(unknown_name("engine", engine, ENGINES))
    if engine == "vllm":
        # Before the model is loaded for it.
        require_vllm("use --engine embedded")
    opened = open_model()
    return ServedModel(
        make_engine(settled(engine, opened), opened, settings),
        opened.tokenizer,
        frozenset(stop_ids(opened.model, opened.tokenizer)),
        {thinking: recommendations(opened.model, thinking) for thinking in (False, True)},
    )


def settled(engine: str, opened: OpenedModel) -> str:
    """Which engine ``auto`` stands for: vLLM where it is installed and can hold the model's states,
    none of which may grow, else the embedded one. Others stand for themselves."""
    if engine != "auto":
        return engine
    constant = all(mixed.capabilities.constant_state for mixed in opened.model.mixers())
    return "vllm" if constant and has_vllm() else "embedded"


def make_engine(engine: str, opened: OpenedModel, settings: EngineSettings) -> Engine:
    """An engine, embedded or vllm, with an opened model in it.

    Raises:
        AllMemError: if it does not serve this model, or not with these settings.
    """
    # Only the chosen one is imported.
    if engine == "vllm":
        if settings.keep is not None:
            raise AllMemError(
                f"keep = {settings.keep} is of the engine embedded; vLLM has a prefix cache of its "
                "own (vllm serve --enable-prefix-caching). Leave it out, or use --engine embedded"
            )
        from allmem.serving.vllm_engine import VLLMEngine

        return VLLMEngine(opened, **settings.given())
    from allmem.serving.embedded import EmbeddedEngine

    return EmbeddedEngine(
        opened.model, window=opened.window, chunk=opened.chunk, **settings.given()
    )
