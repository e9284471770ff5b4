"""What is read to rank layers: a model that is converted in all of them, and rows of a few thousand
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from allmem.choices import Conversion
from allmem.data.fact_lists import FactLists, FactWriter
from allmem.distill.rows import Row, held_out_rows
from allmem.documents import LEARNED, load_book, read_document
from allmem.errors import AllMemError
from allmem.mixers.registry import memory_kind
from allmem.opening import OpenedModel, open_model
from allmem.prompts import plain_ids

__all__ = ["fact_rows", "open_converted", "text_rows"]


def open_converted(
    source: str, mixer: str, window: int | None, sinks: int | None, **loading: Any
) -> OpenedModel:
    """A model with one mixer in every layer that is not local already.

    Args:
        mixer: ``window`` or a KV policy.
        loading: see ``allmem.opening.open_model``.

    Raises:
        AllMemError: if the mixer is not one that takes full attention's place, or the model is
            converted already.
    """
    if mixer == "full" or memory_kind(mixer) is not None:
        what = "is full attention itself" if mixer == "full" else "stands beside the window"
        raise AllMemError(
            f"mixer {mixer!r} {what}: layers are ranked by what a smaller attention costs them; "
            "name window or a KV policy"
        )
    return open_model(source, Conversion(window, sinks, mixers=mixer), **loading)


def text_rows(
    tokenizer: Any, names: Sequence[str], window: int, length: int | None, tokens: int
) -> list[Row]:
    """Rows that lie evenly over texts, of which every token counts.

    Args:
        names: of files; none for a novel that ships with allmem.
        length: tokens of a row; ``None`` for twice the window.
        tokens: of all rows, about.

    Raises:
        AllMemError: if a file cannot be read, or is shorter than a row.
    """
    length = length or 2 * window
    documents = [read_document(name) for name in names] or [load_book(LEARNED)]
    share = max(1, tokens // length // len(documents))
    return [
        row
        for document in documents
        for row in held_out_rows(torch.tensor(plain_ids(tokenizer, document)), length, share)
    ]


def fact_rows(tokenizer: Any, window: int, tokens: int) -> list[Row]:
    """Lists of facts that are asked for again when they are older than the window, of which the
    answers count."""
    writer = FactWriter(FactLists(gaps=(window,)), tokenizer, window, held_out=True)
    return [writer.row(i) for i in range(max(1, tokens // writer.longest))]
