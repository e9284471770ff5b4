"""Lists of facts, in the very form on which small memories are trained (``data.fact_lists``): all
facts, then other text, then all facts again in another order.

No chat and no question: what is measured are the digits of a fact when it comes again, the right
ones before it given. So a memory that was trained on such lists can show what it can do, at
distances that it was trained on and others. Names and numbers are none of the training's.

Letters: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from allmem.data.builders.material import CHARACTERS_PER_TOKEN
from allmem.data.fact_lists import FactLists, FactWriter
from allmem.data.labels import IGNORED
from allmem.documents import READ, load_book
from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.probes.base import count, measuring_tokenizer
from allmem.evaluation.probes.composing import Sight
from allmem.evaluation.task import Example, Part, Row, Setting, Task
from allmem.prompts import plain_ids, start_ids

__all__ = ["TASKS", "RecalledLists"]

FACTS = 16
FILLERS = (0, 128, 512, 2048)
"""Tokens of other text between the facts and their return."""
FEW_SINKS = 16
"""Tokens of a fact or two."""


class RecalledLists(Task):
    """``probes/fact_lists``: digits of listed facts that are out of sight, by the text since."""

    name = "probes/fact_lists"
    metric = "digits"

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        sight = Sight.of(model, setting)
        tokenizer = measuring_tokenizer(model)
        # Many sinks would show most of the list for ever: prose stands in them instead.
        before = _prose(tokenizer, sight.sinks) if sight.sinks > FEW_SINKS else []
        # One writer for all, since it reads a novel.
        writer = FactWriter(_lists(0), tokenizer, sight.horizon, setting.seed, held_out=True)
        listed = writer.longest
        wished = {*FILLERS, *(length - listed for length in setting.lengths if length > listed)}
        # Where attention sees further than all of them, as much as it sees.
        fillers = [n for n in sorted(wished) if _reaches_beyond(writer, n)] or [sight.horizon]
        for filler in fillers:
            for i in range(count(setting, 1)):
                writer.facts = _lists(filler)
                row = writer.row(i)
                asked = _Asked.of(before, row["input_ids"], row["labels"], sight.sinks)
                cell = {"facts": FACTS, "fillers": filler}
                yield Example(f"{FACTS}-{filler}-{i}", asked, {"horizon": sight.horizon}, cell)

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        rows = []
        for example in examples:
            asked: _Asked = example.ask
            first = int(asked.counted.nonzero()[0])
            session = model.session()
            session.read(asked.ids[:first])
            losses, right = session.check(asked.ids[first:])
            counted = asked.counted[first:]
            rows.append(
                {
                    "nll": float(losses[counted].sum()),
                    "right": int(right[counted].sum()),
                    "tokens": int(counted.sum()),
                    "prompt_tokens": len(asked.ids),
                }
            )
        return rows

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        # A document is read by itself: what is done shall be written before the next one.
        return [[example] for example in examples]

    def parts(self, row: Row) -> list[Part]:
        tokens = row["tokens"]
        scores = {"digits": row["right"] / tokens, "answer_nll": row["nll"] / tokens}
        return [Part(scores, row["cell"], weight=tokens)]


@dataclass(frozen=True)
class _Asked:
    """A row, and which of its tokens are digits to be remembered, [T] bool."""

    ids: list[int]
    counted: Tensor

    @classmethod
    def of(cls, before: list[int], ids: Tensor, labels: Tensor, sinks: int) -> _Asked:
        """Behind other tokens; without the digits of facts that stand among the sinks."""
        tokens = [*before, *ids.tolist()]
        counted = torch.tensor([False] * len(before) + (labels != IGNORED).tolist())
        begin = 0
        for is_digit, run in groupby(counted.tolist()):
            end = begin + len(list(run))
            number = tokens[begin:end]
            if is_digit and any(tokens[i : i + len(number)] == number for i in range(sinks)):
                counted[begin:end] = False
            begin = end
        return cls(tokens, counted)


def _prose(tokenizer: Any, tokens: int) -> list[int]:
    """So many tokens of a novel, the last one the end of a line."""
    end = plain_ids(tokenizer, "\n")
    prose = plain_ids(tokenizer, load_book(READ)[: tokens * CHARACTERS_PER_TOKEN])
    return [*start_ids(tokenizer), *prose[: tokens - len(end)], *end]


def _lists(filler: int) -> FactLists:
    return FactLists(counts=(FACTS,), gaps=(filler,))


def _reaches_beyond(writer: FactWriter, filler: int) -> bool:
    """Whether rows have facts that are out of sight when they come again."""
    writer.facts = _lists(filler)
    try:
        writer.row(0)
    except AllMemError:
        return False
    return True


TASKS: dict[str, Callable[[], Task]] = {"probes/fact_lists": RecalledLists}
