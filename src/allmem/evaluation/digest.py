"""Which examples a file of rows is about, as a short text: other questions, references or prompts
give another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from allmem.evaluation.task import Example, FilledTemplate, Request

__all__ = ["fingerprint"]


def fingerprint(examples: Iterable[Example]) -> str:
    """Of examples, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        known = [example.id, example.cell, example.reference, example.ask]
        digest.update(json.dumps(_plain(known), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A value as JSON holds it, the same in every process."""
    if isinstance(value, Request):
        # Where a text is cut follows from the model, which has a place of its own in the header:
        # two models of different reach are asked the same.
        value = dataclasses.replace(value, longest=None, least_new_tokens=None)
    if isinstance(value, FilledTemplate):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(kept) for key, kept in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(kept) for kept in value]
    # Numbers that were worked out from the rest may differ from machine to machine.
    return None if isinstance(value, Tensor) else value
