"""What the demo leaves behind: figures as JSON and a plot, each written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from allmem.demo.steps import Point
from allmem.errors import AllMemError
from allmem.files import atomic_path

__all__ = ["crossover", "sampled", "save_report"]


def crossover(points: dict[str, list[Point]]) -> int | None:
    """The length at which full attention's cache outgrows AllMem's state, in tokens; below it, the
    cache is the smaller one. From the bytes that were measured; a cache grows in proportion."""
    full, constant = points["full attention"], points["AllMem"]
    per_token = full[-1].state_bytes / full[-1].position
    return None if per_token == 0 else round(constant[-1].state_bytes / per_token)


def sampled(points: list[Point], count: int = 8) -> list[Point]:
    """Some of the points, at lengths that double up to the last one."""
    last = points[-1].position
    wanted = [last >> i for i in range(count)]
    nearest = {min(range(len(points)), key=lambda i: abs(points[i].position - w)) for w in wanted}
    return [points[i] for i in sorted(nearest)]


def save_report(folder: str, points: dict[str, list[Point]], figures: dict[str, Any]) -> list[Path]:
    """Write ``demo.json`` and ``demo.png``.

    Args:
        figures: whatever else was measured, JSON-able.

    Raises:
        AllMemError: if matplotlib is missing or the files cannot be written.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(f"cannot make the folder {target}: {error.strerror}") from error
    named = {name: [dataclasses.asdict(p) for p in line] for name, line in points.items()}
    with atomic_path(target / "demo.json") as part:
        part.write_text(json.dumps({**figures, "readings": named}, indent=2) + "\n")
    with atomic_path(target / "demo.png") as part:
        _plot(part, points)
    return [target / "demo.json", target / "demo.png"]


def _plot(path: Path, points: dict[str, list[Point]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AllMemError('the plot needs matplotlib; run: pip install "allmem[demo]"') from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    state, pace = figure.subplots(1, 2)
    for name, line in points.items():
        at = [p.position for p in line]
        state.plot(at, [p.state_bytes / 1e6 for p in line], label=name)
        pace.plot(at, [1000 * p.seconds_per_token for p in line], label=name)
    state.set(xlabel="tokens read", ylabel="state (MB)", title="What the past takes up")
    pace.set(xlabel="tokens read", ylabel="ms per token", title="What the next token costs to read")
    for axes in (state, pace):
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, format="png", dpi=120)
