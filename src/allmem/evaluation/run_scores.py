"""All figures of a run's folder: by task and group, and against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from allmem.evaluation.bootstrap import Score
from allmem.evaluation.catalog import find_task
from allmem.evaluation.rows import Run
from allmem.evaluation.scores import (
    TaskScores,
    average_of,
    difference_of,
    group_difference,
    same_examples,
    task_scores,
    why_apart,
)
from allmem.evaluation.task import Task

__all__ = ["RunScores", "run_scores"]


@dataclass(frozen=True)
class RunScores:
    """All figures of a run."""

    run: Run
    labels: list[str]
    """Models, as in the run."""
    baseline: str
    """The model from which differences are taken."""
    tasks: dict[tuple[str, str], TaskScores]
    """By model and task; without those that have no rows yet."""
    groups: dict[tuple[str, str], Score]
    """Averages by model and group, where every task of the group has rows and nothing keeps them
    apart."""
    differences: dict[tuple[str, str], Score]
    """By model and task: how much it has over the baseline on the rows that both answered."""
    group_differences: dict[tuple[str, str], Score]
    """By model and group: the mean of its tasks' differences."""
    notes: Sequence[str] = ()
    """Averages and differences that there are not, and why."""

    @property
    def names(self) -> list[str]:
        """The tasks that have rows, in the order of the run."""
        return list(dict.fromkeys(task for _, task in self.tasks))


def run_scores(folder: str | Path, tasks: Mapping[str, Task] | None = None) -> RunScores:
    """All figures of a run's folder.

    Args:
        tasks: those of the run by name; those of the catalog if not given.

    Raises:
        AllMemError: if it is no run, a file in it is damaged, or a task is unknown here.
    """
    run = Run(folder)
    found: dict[tuple[str, str], TaskScores] = {}
    for name in run.tasks:
        with_rows = [label for label in run.labels if run.has(label, name)]
        task = (tasks or {}).get(name) or (find_task(name) if with_rows else None)
        for label in with_rows:
            assert task is not None
            found[label, name] = task_scores(run, label, task)
    groups, differences, group_differences = {}, {}, {}
    notes: list[str] = []
    for (label, name), ours in found.items():
        base = found.get((run.baseline, name))
        if label == run.baseline or base is None:
            continue
        difference = difference_of(ours, base)
        if difference is not None:
            differences[label, name] = difference
        elif not same_examples(ours, base):
            notes.append(
                f"{label} and {run.baseline} were asked different examples of {name}: there is no "
                "difference"
            )
    for label in run.labels:
        for group, names in run.groups.items():
            members = [found.get((label, name)) for name in names]
            own = [one for one in members if one is not None]
            if len(own) < len(names):
                continue
            apart = why_apart(own)
            if apart is None and any(one.lengths_apart for one in own):
                apart = "its tasks are averaged by length (see `allmem report`)"
            if apart is not None:
                notes.append(f"{label} has no average of {group}: {apart}")
                continue
            groups[label, group] = average_of(own)
            if all((label, name) in differences for name in names):
                group_differences[label, group] = group_difference(
                    [(m, found[run.baseline, m.task]) for m in own]
                )
    return RunScores(
        run, run.labels, run.baseline, found, groups, differences, group_differences, notes
    )
