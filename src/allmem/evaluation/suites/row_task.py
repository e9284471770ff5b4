"""Benchmarks whose examples are rows of files: read, checked, and asked by one of two protocols.

``official`` is the benchmark's own: its length of answers, its cut, a chat template only where it
has one. ``paper`` is that of the AllMem paper (section 4 and 5.2): always as a chat, up to 32,768
new tokens, prompts cut at 128k tokens; its sampling is ``Setting.sampling``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.fields import Values
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.prompting import PAPER_NEW_TOKENS, check_can_cut
from allmem.evaluation.sources import Source, read_lines
from allmem.evaluation.task import Example, PromptTask, Request, Setting
from allmem.evaluation.user_files import Line

__all__ = ["RowTask", "longest_prompt"]

PAPER_LONGEST = 128 * 1024
"""What Qwen3's tokenizer takes (section 5.2)."""


class RowTask(PromptTask):
    """A set of rows.

    Args:
        name: of the task.
        source: where its rows are.
        metric: that is reported.
    """

    def __init__(self, name: str, source: Source, metric: str) -> None:
        self.name = name
        self.source = source
        self.metric = metric

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        """The rows of the file, those with the same context one after another: prompts begin with
        it, and so it need be read but once."""
        used: Counter[str] = Counter()
        for line in _by_context(self._good(setting)):
            used[_id(line)] += 1
            repeated = used[_id(line)]
            request = self.request(line.values, model)
            if setting.protocol == "paper":
                request = replace(
                    request,
                    chat=True,
                    ends_at="",
                    longest=PAPER_LONGEST,
                    max_new_tokens=PAPER_NEW_TOKENS,
                    # A server refuses what its reach has no room for.
                    least_new_tokens=request.max_new_tokens if model.bounded else None,
                )
            check_can_cut(model, setting.truncate or request.longest)
            yield Example(
                id=_id(line) if repeated == 1 else f"{_id(line)}#{repeated}",
                ask=request,
                reference=self.reference(line.values),
                cell=self.cell(line.values),
            )

    def _good(self, setting: Setting) -> Iterator[Line]:
        """The first ``setting.limit`` rows of each cell that can be asked."""
        taken: Counter[tuple[Any, ...]] = Counter()
        for line in read_lines(self.source, setting):
            problem = self.problem(line.values)
            if problem is not None:
                bad_row(setting, f"{line.place}: {problem}")
                continue
            cell = tuple(self.cell(line.values).values())
            if setting.limit is not None and taken[cell] >= setting.limit:
                if self.cells == 1:
                    return
                continue
            taken[cell] += 1
            yield line
        if not taken:
            raise AllMemError(f"{self.name}: there is not one row in its file that can be read")

    cells: int = 1
    """How many values ``cell`` has."""

    @abstractmethod
    def problem(self, values: Values) -> str | None:
        """Why a row cannot be asked."""

    @abstractmethod
    def request(self, values: Values, model: EvaluatedModel) -> Request:
        """A row as the benchmark asks it."""

    @abstractmethod
    def reference(self, values: Values) -> dict[str, Any]:
        """What its score needs."""

    def cell(self, values: Values) -> Mapping[str, str | int | float]:
        """Where it belongs in the task's table."""
        return {}


def longest_prompt(reach: int | None) -> int | None:
    """Tokens to which LongBench and LV-Eval cut prompts for a model.

    Their tables say 3500 for a reach of 4k, 7500 for 8k, 15500 for 16k, 31500 for 32k, 199500 for
    200,000: 500 less, where a k stands for a thousand. Half of a reach below 1k, which they do not
    know.
    """
    if reach is None:
        return None
    thousands = reach // 1024 * 1000 if reach % 1024 == 0 else reach
    return max(thousands - 500, reach // 2)


def _id(line: Line) -> str:
    given = line.values.get("_id", line.values.get("id"))
    return f"line-{line.number}" if given is None else str(given)


def _by_context(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines in groups of the same context, which they then share in memory: books of millions of
    characters come with dozens of questions."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        context = line.values["context"]
        group = groups.setdefault(context, [])
        if group:
            line.values["context"] = group[0].values["context"]
        group.append(line)
    while groups:
        yield from groups.pop(next(iter(groups)))
