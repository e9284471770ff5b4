"""Timing that can be repeated: warm-up, medians, spread, and a record of the machine."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from allmem import __version__
from allmem.files import atomic_path
from allmem.machine import device_name

__all__ = ["RESULTS", "Timing", "machine", "record", "timed"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs."""

    median: float
    fastest: float
    slowest: float
    runs: int


def timed(work: Callable[[], Any], runs: int = 3, warm_up: int = 1) -> Timing:
    """Run ``work`` ``warm_up + runs`` times and time the last ``runs``."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), runs)


def machine() -> dict[str, Any]:
    """Where and with what a measurement ran."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allmem": __version__,
    }


def _module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec is not None else sys.argv[0], *sys.argv[1:]]


def record(name: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, and print the table."""
    where = machine()
    plain = [{k: asdict(v) if isinstance(v, Timing) else v for k, v in r.items()} for r in rows]
    with atomic_path(RESULTS / f"{name}.json") as part:
        part.write_text(
            json.dumps({"machine": where, "rows": plain, "notes": notes}, indent=1) + "\n"
        )
    columns = list(rows[0])
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    table += ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]
    head = [f"# {title}", "", f"`{where['command']}`, {where['date']}", ""]
    head.append(
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads, device "
        f"{where['device']}; Python {where['python']}, torch {where['torch']}, transformers "
        f"{where['transformers']}, allmem {where['allmem']}"
    )
    text = "\n".join([*head, "", *table, "", *(f"- {n}" for n in notes)]) + "\n"
    with atomic_path(RESULTS / f"{name}.md") as part:
        part.write_text(text)
    print(text)


def _cell(value: Any) -> str:
    if isinstance(value, Timing):
        spread = f" ({value.fastest:.3g}–{value.slowest:.3g})" if value.runs > 1 else ""
        return f"{value.median:.3g}{spread}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
