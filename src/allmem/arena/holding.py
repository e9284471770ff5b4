"""A whole arena: entrants are given their sizes, trained and measured, the report is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from allmem.arena.config import ArenaConfig
from allmem.arena.contenders import Contender, contenders
from allmem.arena.ground import Ground
from allmem.arena.jobs import Job, jobs_of
from allmem.arena.own_mixers import check_mixers, import_modules
from allmem.arena.report import figure_names, make_report, ranked
from allmem.arena.running import longest_row
from allmem.arena.schedule import JobProgress, run_jobs
from allmem.arena.standings import Standing, gather
from allmem.errors import AllMemError
from allmem.evaluation.checks import locked

__all__ = ["Arena", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What an arena came to."""

    standings: Sequence[Standing]
    """Teacher and window first, then the best."""
    names: Sequence[str]
    """Of the figures, the main one first."""
    report: Path


class Arena:
    """An arena whose entrants have their sizes.

    Args:
        config: see ``ArenaConfig``.

    Raises:
        AllMemError: if an entrant, the teacher or the data makes no sense, sizes cannot be
            matched, or a mixer of one's own does not keep the contract.
    """

    def __init__(self, config: ArenaConfig) -> None:
        self.config = config
        import_modules(config)
        self.length = config.length or longest_row(config)
        """Tokens at which states are counted and reading is timed."""
        self.contenders: list[Contender] = contenders(config, Ground(config, self.length))
        check_mixers(one.mixer for one in self.contenders)
        self.jobs: list[Job] = jobs_of(config, self.contenders, self.length)

    def hold(
        self, at_once: int = 1, on_progress: Callable[[JobProgress], None] | None = None
    ) -> Outcome:
        """Run what is not done, and report.

        Args:
            at_once: jobs side by side, each in a process of its own; with 1 all in this one.

        Raises:
            AllMemError: if a job cannot be run, or another process holds this arena.
        """
        folder = Path(self.config.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AllMemError(f"cannot make the folder {folder}: {error.strerror}") from error
        with locked(folder):
            run_jobs(self.jobs, at_once, on_progress)
            return self.report()

    def report(self) -> Outcome:
        """Write the report of what is there.

        Raises:
            AllMemError: if nothing is.
        """
        standings = gather(self.contenders, self.jobs)
        path = make_report(self.config, standings, self.length)
        names = figure_names(standings)
        return Outcome(ranked(standings, names[0]), names, path)
