"""Who runs when: all jobs in this process one after another, or each in its own, several at a time.

Side by side, jobs take turns on the GPUs that are visible, or share out the cores. What a job comes
to does not depend on when it ran.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from allmem.arena.jobs import Job, write_job
from allmem.arena.running import run_job
from allmem.distill.progress import Step
from allmem.errors import AllMemError

__all__ = ["JobProgress", "run_jobs"]

PAUSE = 0.2
"""Seconds between two looks at the processes."""
LAST_WORDS = 2000
"""Characters of what a process said that is looked through for its last line."""


@dataclass(frozen=True)
class JobProgress:
    """How far an arena is."""

    label: str
    """Of the job that has just moved on."""
    done: int
    """Jobs."""
    total: int
    share: float
    """Of all the work, from 0 to 1."""
    step: Step | None = None
    """Of its training, where it runs in this process."""


Report = Callable[[JobProgress], None]


def run_jobs(jobs: Sequence[Job], at_once: int = 1, report: Report | None = None) -> None:
    """Run what is not done yet.

    Args:
        at_once: jobs side by side; with 1 all of them run in this process.

    Raises:
        AllMemError: if a job cannot be run, after all others were.
    """
    tell: Report = report or (lambda _: None)
    todo = [job for job in jobs if not job.done]
    done, total = len(jobs) - len(todo), len(jobs)
    failed: list[str] = []
    if at_once == 1:
        for job in todo:
            try:
                _run_here(job, done, total, tell)
            except (AllMemError, RuntimeError, OSError) as error:
                # Too little memory or a full disk for one is no reason to leave out the others.
                failed.append(f"{job.label}: {error}")
            done += 1
    else:
        failed = _run_apart(todo, at_once, done, total, tell)
    if failed:
        raise AllMemError(
            f"{len(failed)} of {total} jobs failed; the same command goes on with them. The first: "
            f"{failed[0]}"
        )


def _run_here(job: Job, done: int, total: int, report: Report) -> None:
    def on_step(step: Step) -> None:
        report(JobProgress(job.label, done, total, (done + step.progress) / total, step))

    run_job(job, on_step)
    report(JobProgress(job.label, done + 1, total, (done + 1) / total))


def _run_apart(
    todo: Sequence[Job], at_once: int, done: int, total: int, report: Report
) -> list[str]:
    """What was said of the jobs that failed."""
    waiting = list(todo)
    places = list(range(at_once))
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    failed: list[str] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                place = next(p for p in places if p not in running)
                running[place] = job, _start(job, place, at_once)
            for place, (job, process) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[place]
                done += 1
                if code != 0:
                    failed.append(f"{job.label}: {_why(job, code)}")
                report(JobProgress(job.label, done, total, done / total))
            time.sleep(PAUSE)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _start(job: Job, place: int, at_once: int) -> subprocess.Popen[bytes]:
    """A process for a job; what it says goes into its folder."""
    folder = write_job(job)
    environment = {**os.environ, **_share(place, at_once)}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "allmem.arena.worker", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _share(place: int, at_once: int) -> dict[str, str]:
    """What a process may use: a GPU, and some of the cores."""
    cores = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    shared = {"OMP_NUM_THREADS": str(max(1, cores // at_once))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(torch.cuda.device_count())]
    if visible:
        names = [name.strip() for name in visible.split(",")]
    if names and torch.cuda.is_available():
        shared["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    return shared


def _why(job: Job, code: int) -> str:
    """Why a process ended: its last line, or the signal."""
    if code < 0:
        return f"its process was ended by signal {-code} (too little memory?)"
    said = (job.folder / "log.txt").read_bytes()[-LAST_WORDS:].decode(errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {code}").removeprefix("error: ")
