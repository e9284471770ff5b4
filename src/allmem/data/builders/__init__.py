"""Builders of long samples from short ones and from plain text.

A builder makes sample number ``n`` from the seed and ``n`` alone, so a build can go on anywhere.
What it makes is whole: it is left out rather than cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from allmem.data.builders.facts import Facts, Needles, Updates
from allmem.data.builders.haystack import Haystack
from allmem.data.builders.key_value import KeyValue
from allmem.data.builders.material import Material
from allmem.data.conversation import Conversation
from allmem.errors import AllMemError, unknown_name
from allmem.schema import build_from

__all__ = ["BUILDERS", "Builder", "Material", "make_builder"]


class Builder(Protocol):
    """Makes samples."""

    def sample(self, n: int) -> Conversation:
        """Sample number ``n``, from 0."""
        ...


BUILDERS: dict[str, Callable[..., Builder]] = {
    "haystack": Haystack,
    "facts": Facts,
    "needles": Needles,
    "updates": Updates,
    "key_value": KeyValue,
}
"""Builders by name: dataclasses whose fields are their options."""


def make_builder(name: str, options: dict[str, Any], material: Material, label: str) -> Builder:
    """A builder with its options.

    Raises:
        AllMemError: on an unknown name or option, or a value outside its range.
    """
    if name not in BUILDERS:
        raise AllMemError(unknown_name("builder", name, BUILDERS))
    kind: Any = BUILDERS[name]
    builder = build_from(kind, options, f"builder {name}")
    builder.prepare(material, label)
    return builder
