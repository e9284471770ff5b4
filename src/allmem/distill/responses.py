"""The file of a student's responses: JSON Lines, the first of which says whose and how.

    {"kind": "responses", "format": 1, "model": ..., "tokenizer": ..., "sampling": ..., ...}
    {"number": 0, "prompt": ..., "prompt_ids": [...], "response": ..., "response_ids": [...],
     "finished": true}

A line that was cut off at the end of the file does not count; any other damage is an error.
``allmem.distill.collect`` writes such files, ``response_rows`` makes training rows of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allmem.data.labels import IGNORED
from allmem.data.packing import pack
from allmem.distill.rows import Row
from allmem.errors import AllMemError
from allmem.journal import Journal, Kind
from allmem.models.fingerprint import vocabulary

__all__ = [
    "RESPONSES",
    "Response",
    "response_file",
    "response_row",
    "response_rows",
]

RESPONSES = Kind(
    "responses",
    1,
    make="make one with `allmem collect`",
    again="collect the responses again",
    repair="collect the rest again",
)


@dataclass(frozen=True)
class Response:
    """What a student answered."""

    ids: list[int]
    """With the token that ended it, if one did."""
    finished: bool
    """Whether one did."""

    @property
    def said(self) -> list[int]:
        """The tokens without the one that ended it."""
        return self.ids[: len(self.ids) - self.finished]


def response_file(path: str | Path) -> Journal:
    """A file of responses, to be read.

    Raises:
        AllMemError: if it is missing, or another kind of file.
    """
    return Journal(path, RESPONSES, _check)


def _check(values: dict[str, Any]) -> None:
    for key in ("prompt_ids", "response_ids"):
        if not all(type(token) is int and token >= 0 for token in values[key]):
            raise ValueError(f"{key} are not tokens")
    if not isinstance(values["finished"], bool):
        raise ValueError("finished is neither true nor false")


def response_row(prompt: Sequence[int], response: Response) -> Row:
    """A row of one prompt and the response to it, which is learned."""
    ids = torch.tensor([*prompt, *response.ids])
    labels = ids.clone()
    labels[: len(prompt)] = IGNORED
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(len(ids))}


def response_rows(path: str | Path, length: int, tokenizer: Any) -> list[Row]:
    """Prompts and responses, several in a row, of which the responses are learned.

    Those that are longer than a row, and those in which nothing was said, are left out with a
    warning; so is told if the file is not complete.

    Args:
        length: tokens of a row at most.
        tokenizer: of the model that shall learn.

    Raises:
        AllMemError: if the file is missing, damaged or of another tokenizer, or nothing is left.
    """
    file = response_file(path)
    own, theirs = vocabulary(tokenizer), file.header["tokenizer"]
    if own != theirs:
        raise AllMemError(
            f"{path} was collected with another tokenizer ({theirs['size']} tokens, fingerprint "
            f"{theirs['fingerprint']}; this one has {own['size']}, {own['fingerprint']}); collect "
            "responses of the model that you train"
        )
    samples, found, too_long, empty = [], 0, 0, 0
    for values, _ in file.lines():
        found += 1
        response = Response(values["response_ids"], values["finished"])
        row = response_row(values["prompt_ids"], response)
        if not response.said:
            empty += 1
        elif len(row["input_ids"]) > length:
            too_long += 1
        else:
            samples.append(row)
    left_out = f"{too_long} are longer than {length} tokens, {empty} are empty"
    if not samples:
        raise AllMemError(f"{path} holds nothing to learn from: of {found} responses {left_out}")
    if too_long or empty:
        warnings.warn(f"{path}: of {found} responses {left_out}; they are left out", stacklevel=2)
    asked = file.header["prompts"]["number"]
    if found < asked:
        warnings.warn(
            f"{path} holds {found} responses to {asked} prompts; the same `allmem collect` goes on",
            stacklevel=2,
        )
    packed = pack([len(sample["input_ids"]) for sample in samples], length)
    return [
        {key: torch.cat([samples[i][key] for i in row]) for key in samples[row[0]]}
        for row in packed
    ]
