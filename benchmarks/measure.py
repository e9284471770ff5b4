"""Timing that can be repeated: warm-up, medians, spread, and a record of the machine.

Knows nothing of what is measured. ``ALLMEM_RESULTS`` in the environment says where results are
written, in place of ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from allmem import __version__
from allmem.files import atomic_path
from allmem.machine import device_name
from benchmarks.targets import Finding, target_rows

__all__ = [
    "RESULTS",
    "Timing",
    "add_options",
    "machine",
    "markdown",
    "plain",
    "record",
    "rotating",
    "timed",
    "timing_of",
    "wait",
    "where",
]

ASKED = os.environ.get("ALLMEM_RESULTS")
RESULTS = Path(ASKED or Path(__file__).parent / "results")
CACHE = {"cpu": 64 << 20, "cuda": 128 << 20}
"""Bytes that inputs must have together so that none of them waits in a cache: twice the last level
of the machines that were seen (32 MB; 60 MB)."""
SETTINGS = ("ALLMEM_KERNELS",)
QUICK = "Quick run with tiny sizes, to see that the programme works: its figures mean nothing."

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs."""

    median: float
    fastest: float
    slowest: float
    runs: int

    def times(self, factor: float) -> Timing:
        """In another unit, or by another count."""
        return Timing(self.median * factor, self.fastest * factor, self.slowest * factor, self.runs)


def timing_of(seconds: Sequence[float]) -> Timing:
    """Median and spread of what was timed elsewhere."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def timed(
    work: Callable[[], Any], runs: int = 3, warm_up: int = 1, device: str | torch.device = "cpu"
) -> Timing:
    """Run ``work`` ``warm_up + runs`` times and time the last ``runs``, each until ``device`` has
    done what it was asked for."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(runs):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - begin)
    return timing_of(seconds)


def wait(device: str | torch.device) -> None:
    """Until a device has done all that it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def rotating(make: Callable[[], T], size: int, device: str | torch.device) -> Iterator[T]:
    """Inputs of ``size`` bytes, made once and given in turn without end, so many that a cache holds
    none of them when it is given again."""
    count = -(-CACHE[torch.device(device).type] // max(size, 1))
    return itertools.cycle([make() for _ in range(min(max(count, 2), 32))])


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where and with what a measurement ran."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "command": shlex.join([*_settings(), "python", "-m", *_module_and_arguments()]),
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allmem": __version__,
    }


def where(found: dict[str, Any]) -> str:
    """What ``machine`` gave, in a line."""
    return (
        f"{found['processor']}, {found['cores']} cores, {found['threads']} threads, device "
        f"{found['device']}; Python {found['python']}, torch {found['torch']}, transformers "
        f"{found['transformers']}, allmem {found['allmem']}"
    )


def _settings() -> list[str]:
    """What the environment says that changes what is measured."""
    return [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]


def _module_and_arguments() -> list[str]:
    """Of the command, but for where it writes, which is of no use to who repeats it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = [spec.name if spec is not None else Path(sys.argv[0]).name]
    rest = iter(sys.argv[1:])
    for word in rest:
        if word == "--output":
            next(rest, None)
        elif not word.startswith("--output="):
            words.append(word)
    return words


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """``--quick``, ``--name`` and ``--output``, which mean the same everywhere."""
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it works; writes nothing"
    )
    parser.add_argument("--name", default=name, help="of the files that are written")
    parser.add_argument(
        "--output", type=Path, help=f"folder for results, default {RESULTS.name}; made if missing"
    )


def record(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    notes: list[str],
    findings: Sequence[Finding] = (),
    options: argparse.Namespace | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Write ``NAME.json`` and ``NAME.md``, and print the table.

    Args:
        findings: what the run says of the targets.
        options: those of ``add_options``; a quick run writes nothing unless it is told where.
    """
    quick = getattr(options, "quick", False)
    folder: Path = getattr(options, "output", None) or RESULTS
    found, notes = machine(device), [QUICK, *notes] if quick else notes
    text = _text(title, found, rows, notes, findings)
    if not quick or ASKED or folder != RESULTS:
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"machine": found, "rows": plain(rows), "notes": notes}
        if findings:
            content["findings"] = [asdict(finding) for finding in findings]
        if quick:
            content["quick"] = True
        with atomic_path(folder / f"{name}.json") as part:
            part.write_text(json.dumps({"title": title, **content}, indent=1) + "\n")
        with atomic_path(folder / f"{name}.md") as part:
            part.write_text(text)
    print(text)


def _text(
    title: str,
    found: dict[str, Any],
    rows: list[dict[str, Any]],
    notes: list[str],
    findings: Sequence[Finding],
) -> str:
    parts = [f"# {title}", f"`{found['command']}`, {found['date']}", where(found), markdown(rows)]
    if findings:
        parts.append(markdown(target_rows(findings)))
    return "\n\n".join([*parts, "\n".join(f"- {n}" for n in notes)]) + "\n"


def plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON can hold them."""
    return [{k: asdict(v) if isinstance(v, Timing) else v for k, v in r.items()} for r in rows]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with every column that some row has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"median", "fastest", "slowest", "runs"}:
        value = Timing(**value)
    if isinstance(value, Timing):
        spread = f" ({value.fastest:.3g}–{value.slowest:.3g})" if value.runs > 1 else ""
        return f"{value.median:.3g}{spread}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
