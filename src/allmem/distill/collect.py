"""``collect``: a student's responses to prompts, written to a file as they come.

For offline on-policy distillation (paper, section 3.3.3). A collection that is killed at any point
goes on from its last whole batch, and its file is the same, byte for byte, as if it had never been
killed. The form of the file is the business of ``allmem.distill.responses`` and
``allmem.journal``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from allmem.distill.prompts import Prompts
from allmem.distill.responder import MAX_NEW_TOKENS, Responder
from allmem.distill.responses import RESPONSES, Response, response_file
from allmem.errors import AllMemError
from allmem.journal import begin, check_header, continued
from allmem.models.fingerprint import vocabulary
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from allmem.schema import check_positive

__all__ = ["Collected", "Respond", "collect"]

SORTED = 256
"""Prompts that are put in order of their length before they are cut into batches, so that a batch
holds little padding."""
TOLD = ("source", "adapter", "prompts.skipped")
"""What a header says to people; a resumed collection need not agree on it."""


class Respond(Protocol):
    """Answers prompts, as ``Responder`` does."""

    name: str
    """Of what answers, for the file's header."""

    def __call__(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[Response]:
        """See ``Responder``."""


@dataclass(frozen=True)
class Collected:
    """How far a collection is."""

    done: int
    """Responses in the file."""
    total: int
    finished: int
    """Of them, those that ended by themselves and not at the limit."""
    tokens: int
    """Of all responses in the file."""
    tokens_per_second: float
    """Since this call began."""
    seconds_left: float


def collect(
    opened: OpenedModel,
    prompts: Prompts,
    path: str | Path,
    sampling: Sampling,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch: int = 8,
    engine: Respond | None = None,
    source: str = "",
    adapter: str | None = None,
    on_batch: Callable[[Collected], None] | None = None,
) -> Collected:
    """Let a student answer prompts; go on with a file that an earlier call began.

    Args:
        opened: the student.
        prompts: made with the student's tokenizer.
        path: of the file.
        sampling: with a seed (``recommended_sampling``).
        max_new_tokens: longest response.
        batch: prompts that are answered together; changes nothing but the rounding.
        engine: what answers in place of ``Responder``, with the same student, sampling and limit.
        source, adapter: names for the file's header.
        on_batch: called after every batch.

    Raises:
        AllMemError: if the file belongs to another collection, naming the difference, is damaged,
            or cannot be written. What was written before stays; the same call goes on from it.
    """
    check_positive(batch=batch)
    responder = Responder(opened, prompts.end, sampling, max_new_tokens)
    path = Path(path)
    header = _header(responder, prompts) | {"source": source, "adapter": adapter}
    if engine is not None:
        # Another engine draws other random numbers.
        header["engine"] = engine.name
    respond = engine or responder
    begin(path, header)
    order = _order(prompts)
    found, end = _found(path, header, order, batch)
    if len(found) < len(order) and opened.memory_is_silent:
        warnings.warn(
            "the memory is untrained and adds nothing: these will be responses of the window "
            "alone; name the adapter of the student that you train",
            stacklevel=2,
        )
    tally = _Tally(len(order), found)
    with continued(path, end) as pen:
        for first in range(len(found), len(order), batch):
            numbers = order[first : first + batch]
            asked = [prompts.listed[i] for i in numbers]
            responses = respond([prompt.ids for prompt in asked], numbers)
            pen.write(
                {
                    "number": number,
                    "prompt": prompt.said,
                    "prompt_ids": prompt.ids,
                    "response": opened.tokenizer.decode(response.said, skip_special_tokens=True),
                    "response_ids": response.ids,
                    "finished": response.finished,
                }
                for number, prompt, response in zip(numbers, asked, responses, strict=True)
            )
            for response in responses:
                tally.add(response)
            if on_batch is not None:
                on_batch(tally.report())
    return tally.report()


class _Tally:
    """Counts responses, and how fast they come.

    Args:
        total: how many there will be.
        found: those that were in the file already.
    """

    def __init__(self, total: int, found: Iterable[Response]) -> None:
        self.total = total
        self.done = self.finished = self.tokens = 0
        for response in found:
            self.add(response)
        self.before = self.done, self.tokens
        self.begun = time.perf_counter()

    def add(self, response: Response) -> None:
        """Count one."""
        self.done += 1
        self.finished += response.finished
        self.tokens += len(response.ids)

    def report(self) -> Collected:
        """How far it is."""
        done, tokens = self.before
        seconds = time.perf_counter() - self.begun
        pace = seconds / max(self.done - done, 1)
        return Collected(
            self.done,
            self.total,
            self.finished,
            self.tokens,
            (self.tokens - tokens) / max(seconds, 1e-9),
            pace * (self.total - self.done),
        )


def _order(prompts: Prompts) -> list[int]:
    """The order in which prompts are answered: it knows nothing of batches, which may change."""
    order: list[int] = []
    for first in range(0, len(prompts), SORTED):
        block = range(first, min(first + SORTED, len(prompts)))
        order += sorted(block, key=lambda i: (len(prompts.listed[i].ids), i))
    return order


def _header(responder: Responder, prompts: Prompts) -> dict[str, Any]:
    """What decides the responses."""
    opened, how = responder.opened, responder.sampling
    config = opened.model.config
    window = opened.window or config.window_config
    return {
        **RESPONSES.header,
        "model": opened.model.fingerprint(),
        "dtype": str(opened.model.dtype).removeprefix("torch."),
        "reading": {
            "window": window.window,
            "sinks": window.sinks,
            "chunk": opened.chunk or config.chunk,
        },
        "tokenizer": vocabulary(opened.tokenizer),
        "sampling": {
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "seed": how.seed,
            "max_new_tokens": responder.max_new_tokens,
            "thinking": prompts.thinking,
            "stop": responder.stop,
        },
        "prompts": {
            "number": len(prompts),
            "fingerprint": prompts.fingerprint(),
            "skipped": prompts.skipped,
        },
    }


def _found(
    path: Path, header: dict[str, Any], order: Sequence[int], batch: int
) -> tuple[list[Response], int]:
    """The responses of all whole batches in a file, and at which byte they end.

    Raises:
        AllMemError: if it belongs to another collection, or is damaged.
    """
    file = response_file(path)
    check_header(
        file,
        header,
        TOLD,
        "go on with the same model, prompts and options, or name another file",
    )
    found: list[Response] = []
    whole, end = 0, file.header_end
    for values, line_end in file.lines():
        if len(found) == len(order) or values.get("number") != order[len(found)]:
            raise AllMemError(
                f"{path}, line {len(found) + 2} is not the response that belongs there; it was "
                "altered after it was written: collect anew, into another file"
            )
        found.append(Response(values["response_ids"], values["finished"]))
        if len(found) % batch == 0 or len(found) == len(order):
            whole, end = len(found), line_end
    return found[:whole], end
