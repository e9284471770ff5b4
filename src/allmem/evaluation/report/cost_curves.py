"""What reading costs, drawn from the ``cost.json`` that ``allmem cost --json`` made, if a run's
folder has one. Nothing of the counting itself is known here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.report import plots
from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value
from allmem.evaluation.report.results import Results

__all__ = ["COST_FILE", "cost_curves", "read_costs"]

COST_FILE = "cost.json"
FULL = "full attention"
LAYERS = "attention and memory layers"
MEASURES = {
    "layers_prefill_flops_per_token": (f"reading, {LAYERS}", "FLOPs per token"),
    "layers_decode_flops": (f"the next token, {LAYERS}", "FLOPs"),
    "cache_bytes": ("kept of the text", "bytes"),
}
"""What is drawn, with its unit."""


def read_costs(results: Results) -> dict[str, dict[str, Any]]:
    """What each run's folder has, by the folder's name.

    Raises:
        AllMemError: if a file is no such file.
    """
    found = {}
    for scores in results.runs:
        path = scores.run.folder / COST_FILE
        if path.is_file():
            found[scores.run.folder.resolve().name] = _read(path)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        for row in told["rows"]:
            _ = [row["length"] + 0, str(row["reading"]), *(row[name] + 0 for name in MEASURES)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AllMemError(
            f"{path} is not what `allmem cost --json` writes ({error!r}); make it again or take "
            "it away"
        ) from error
    return told


def cost_curves(costs: Mapping[str, dict[str, Any]]) -> Iterator[Block]:
    """A curve for each reading, and the table behind them."""
    for folder, told in costs.items():
        rows = told["rows"]
        lengths = sorted({row["length"] for row in rows})
        readings = list(dict.fromkeys(row["reading"] for row in rows))
        if not rows:
            continue
        yield Heading(f"Cost: {told.get('model') or folder}")
        if "counted" in told:
            yield Text(f"Counted: {told['counted']}. Not counted: {told.get('not_counted')}.")
        for name, (what, unit) in MEASURES.items():
            wording = f"{what} ({unit})"
            series = [_series(rows, reading, name) for reading in readings]
            png = plots.lines(
                series, "context length (tokens)", unit, title=what, doubling=True, powers=True
            )
            yield Figure(f"cost-{folder}-{name}.png".replace("_", "-"), wording, png)
            yield _table(rows, lengths, readings, name, wording)


def _series(rows: Sequence[Mapping[str, Any]], reading: str, name: str) -> plots.Series:
    own = sorted((row["length"], row[name]) for row in rows if row["reading"] == reading)
    values = [value for _, value in own]
    return plots.Series(reading, [length for length, _ in own], values, values, values)


def _table(
    rows: Sequence[Mapping[str, Any]],
    lengths: Sequence[int],
    readings: Sequence[str],
    name: str,
    wording: str,
) -> Table:
    known = {(row["reading"], row["length"]): row[name] for row in rows}
    lines = []
    for length in lengths:
        full = known.get((FULL, length))
        line: list[str | Value] = [f"{length:,}"]
        for reading in readings:
            value = known.get((reading, length))
            told = "–" if value is None else f"{value:.4g}"
            if value is not None and full and reading != FULL:
                told += f" ({100 * value / full:.1f} %)"
            line.append(Value(told))
        lines.append(line)
    return Table([f"{wording}: length", *readings], lines)
