"""Reading a long text into a cache, and writing what comes next, one token at a time.

Both work on one sequence and one ``AllMemCache``. Reading goes in blocks, so that activations do
not grow with the text, and reports how far it is. After ``write`` the cache has read everything
that was written except an end-of-turn token: the next turn's template brings that itself.

It knows token ids, and of a tokenizer only how to turn them into text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "Detokenizer",
    "Progress",
    "Sampling",
    "pieces_of_text",
    "read",
    "recommendations",
    "recommended_sampling",
    "stop_ids",
    "until",
    "write",
]

BLOCK = 512
"""Tokens between two reports. SmolLM2-135M reads a block in seconds on one CPU core."""


CONTEXT = 8
"""Tokens of a prompt that are decoded along with its continuation."""

PENDING = 16
"""Tokens after which text is shown although it ends within a character: bytes that never become
one, and control tokens, would otherwise be decoded over and over."""


@dataclass(frozen=True)
class Progress:
    """How far a reading is."""

    tokens: int
    """Read so far."""
    total: int
    seconds: float
    """Since it began."""
    state_bytes: int
    """What the whole past takes up."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest one, unless ``temperature`` is above zero.

    Raises:
        AllMemError: on a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise AllMemError(
                f"temperature = {self.temperature} must be 0 (the likeliest token) or more"
            )
        if not 0 < self.top_p <= 1:
            raise AllMemError(f"top_p = {self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise AllMemError(f"top_k = {self.top_k} must be 0 (no limit) or more")

    def chooser(self, device: torch.device) -> Callable[[Tensor], int]:
        """A function from logits [V] to a token, with a random state of its own."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)

        def choose(logits: Tensor) -> int:
            no_ids = torch.empty(1, 0, dtype=torch.int64, device=logits.device)
            chances = warpers(no_ids, logits.float()[None]).softmax(-1)  # [1, V]
            return int(torch.multinomial(chances, 1, generator=generator))

        return choose


QWEN3 = ("qwen3", "qwen3_moe")
QWEN3_SAMPLING: dict[bool, dict[str, Any]] = {
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    False: {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
}
"""By whether it thinks first: Qwen3's model card, "Best Practices". The generation config beside it
has the values for thinking alone."""


def recommendations(model: Any, thinking: bool = False) -> dict[str, Any]:
    """How a model's makers recommend to sample, as far as they do: what its generation config
    holds; for Qwen3, as it came, what its card says.

    Args:
        thinking: whether the model thinks before it answers.
    """
    names = ("temperature", "top_p", "top_k")
    theirs = {name: getattr(model.generation_config, name, None) for name in names}
    found = {name: value for name, value in theirs.items() if value is not None}
    qwen3 = model.config.get_text_config().model_type in QWEN3
    if qwen3 and found in ({}, QWEN3_SAMPLING[True]):
        return dict(QWEN3_SAMPLING[thinking])
    return found


def recommended_sampling(
    model: Any,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    thinking: bool = False,
) -> Sampling:
    """What a user chose, else what the model's makers recommend (as the paper does with Qwen3,
    section 4), else samples of its own distribution (as GKD, arXiv:2306.13649).

    Args:
        thinking: whether the model thinks before it answers.
    """
    chosen = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in chosen.items() if value is not None}
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return Sampling(**neutral | recommendations(model, thinking) | given, seed=seed)


@torch.no_grad()
def read(
    model: AllMemForCausalLM,
    ids: Sequence[int],
    cache: AllMemCache,
    *,
    report: Callable[[Progress], None] | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Read tokens into a cache.

    Args:
        ids: of one sequence; they continue what the cache has read.
        report: called after every block.

    Returns:
        [V], the logits of the token after the last one.

    Raises:
        AllMemError: if there is nothing to read.
    """
    if not ids:
        raise AllMemError("there is nothing to read: the prompt has no tokens")
    begin = time.perf_counter()
    slots = torch.tensor([list(ids)], device=model.device)  # [1, T]
    logits = None
    for first in range(0, len(ids), block):
        part = slots[:, first : first + block]
        output = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[0, -1]
        if report is not None:
            seconds = time.perf_counter() - begin
            report(Progress(first + part.shape[1], len(ids), seconds, cache.nbytes))
    assert logits is not None
    return logits


def write(
    model: AllMemForCausalLM,
    cache: AllMemCache,
    logits: Tensor,
    *,
    max_new_tokens: int,
    stop: Collection[int],
    sampling: Sampling | None = None,
) -> Iterator[int]:
    """Tokens as they are chosen, without the one that ends the text.

    Args:
        cache: reads along; a token that was yielded is read when the next one is asked for.
        logits: [V], what ``read`` returned.
        stop: tokens that end the text (``stop_ids``).
    """
    choose = (sampling or Sampling()).chooser(logits.device)
    for _ in range(max_new_tokens):
        token = choose(logits)
        if token in stop:
            return
        yield token
        logits = read(model, [token], cache)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, by the model's generation config and by the tokenizer."""
    found = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    found |= set(configured) if isinstance(configured, (list, tuple)) else {configured}
    return {token for token in found if token is not None}


class Detokenizer:
    """Turns a stream of tokens into text, as soon as it is certain.

    A token may be part of a character, and its text may depend on the tokens before it: both are
    decoded together and compared.

    Args:
        before: tokens of the text that these continue; a leading space is lost without them.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)[-CONTEXT:]
        self._decoded = len(self._ids)

    def push(self, token: int) -> str:
        """What is certain now and was not before."""
        self._ids.append(token)
        new = self._new()
        pending = len(self._ids) - self._decoded
        if pending < PENDING and (not new or new.endswith("\ufffd")):
            return ""
        if new:
            # The tokens just shown are the context of the next ones.
            del self._ids[: self._decoded]
            self._decoded = len(self._ids)
        else:
            # Control tokens, which are not shown.
            del self._ids[self._decoded :]
        return new

    def rest(self) -> str:
        """What is left at the end: the beginning of a character, or nothing."""
        return self._new()

    def _new(self) -> str:
        known = self._decode(self._ids[: self._decoded])
        return self._decode(self._ids)[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def pieces_of_text(
    tokenizer: Any, tokens: Iterable[int], before: Sequence[int] = ()
) -> Iterator[str]:
    """The text of a stream of tokens, piece by piece; arguments as for ``Detokenizer``."""
    text = Detokenizer(tokenizer, before)
    for token in tokens:
        if piece := text.push(token):
            yield piece
    if rest := text.rest():
        yield rest


def until(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """The pieces up to ``stop``, which ends the text once something other than space was said."""
    said = False
    for piece in pieces:
        if not said:
            piece = piece.lstrip()
        if not piece:
            continue
        said = True
        if stop is not None and stop in piece:
            yield piece.partition(stop)[0]
            return
        yield piece
