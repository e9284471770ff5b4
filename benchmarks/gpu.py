"""Everything that is measured on a GPU, in under nine minutes, and one page of targets.

    python -m benchmarks.gpu [--only rates,prefill] [--resume] [--seconds 490]

Self-contained: random weights in the shapes of Qwen3-0.6B and Qwen3-1.7B, nothing is downloaded.
Parts run one after the other in this process; results are written after every row, so that a run
that is stopped loses nothing. A part that takes longer than its share of the time ends with the row
that it is at, one that fails is noted, and the next one runs. After an error that leaves the device
unusable the programme starts itself again with what is left. ``--device cpu --quick`` goes through
all of it with tiny sizes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_parts import PARTS, Context, GpuPart, Rows
from benchmarks.measure import ASKED, RESULTS, machine, plain
from benchmarks.summary import Part, load, merged, write
from benchmarks.targets import Finding

TITLE = "Measured on a GPU"
WANTED = ("loop forward", "loop both", "gpu prefill", "gpu batch", "step")
"""Targets of this programme."""
SECONDS = 490.0
"""For all parts; importing, and the row at which a part ends, come on top."""
LEAST = 10.0
"""Seconds that must be left to begin a part."""
RESUME = "leave out parts that the page has, also those that failed there"
BROKEN = ("CUDA error", "CUDA driver error", "device-side assert")
"""What an error says after which nothing more runs on a device in this process."""


class UnusableError(RuntimeError):
    """The device does nothing more for this process."""


def run(part: GpuPart, context: Context, allowed: float, flush: Callable[[Part], None]) -> Part:
    """A part's rows and findings.

    Args:
        allowed: seconds, after which no further row is begun.
        flush: given what there is after every row.

    Raises:
        UnusableError: after an error that leaves the device unusable; what there is was flushed.
    """
    begin = time.perf_counter()
    rows: Rows = []
    findings: list[Finding] = []
    found: Part = {"title": part.title, "machine": machine(context.device)}
    notes = list(part.notes)

    def keep() -> None:
        found["rows"] = plain(part.shown(rows)) if rows else []
        found["findings"] = [asdict(finding) for finding in findings]
        found["notes"], found["quick"] = notes, context.quick
        found["took"] = round(time.perf_counter() - begin, 1)
        if wrong := [str(row["what"]) for row in rows if row.get("within") == "NO"]:
            found["failed"] = f"beyond its limit: {', '.join(wrong)}"
        flush(found)

    try:
        for row, said in part.rows(context):
            rows.append(row)
            findings += said
            print(row, flush=True)
            keep()
            if time.perf_counter() - begin > allowed:
                notes.append(f"Ended after {len(rows)} rows: its time was up.")
                break
    # One part's failure is no reason to lose the others.
    except Exception as error:
        traceback.print_exc()
        said_so = (str(error).strip() or "no message").splitlines()[0][:200]
        found["failed"] = f"failed: {type(error).__name__}: {said_so}"
        keep()
        if any(words in str(error) for words in BROKEN):
            raise UnusableError(said_so) from error
    keep()
    return found


def allowed(part: GpuPart, later: Sequence[GpuPart], left: float) -> float:
    """Seconds for a part: its own, and what is left over when all later ones get theirs."""
    spare = left - part.seconds - sum(other.seconds for other in later)
    return min(left, part.seconds + max(spare, 0.0))


def chosen(only: str | None) -> list[GpuPart]:
    """The parts that are asked for, in their order.

    Raises:
        SystemExit: if one is not known.
    """
    names = [part.name for part in PARTS]
    wanted = only.split(",") if only else names
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"error: there is no part {unknown[0]!r}; there are {', '.join(names)}")
    return [part for part in PARTS if part.name in wanted]


def programme(options: argparse.Namespace, folder: Path) -> None:
    """Run the parts that are asked for and write the page."""
    end = time.monotonic() + options.seconds
    context = Context(torch.device(options.device), options.quick)
    before = load(folder / f"{options.name}.json") or {}
    keeps = options.resume or options.only is not None
    found: dict[str, Part] = dict(before.get("parts", {})) if keeps else {}
    parts = [p for p in chosen(options.only) if not (options.resume and p.name in found)]

    def flush(name: str, part: Part) -> None:
        found[name] = part
        ordered = {p.name: found[p.name] for p in PARTS if p.name in found}
        content = merged(TITLE, machine(context.device), ordered, WANTED)
        write(content, folder, options.name, tables=True)

    for number, part in enumerate(parts):
        left = end - time.monotonic()
        if left < LEAST:
            flush(part.name, {"title": part.title, "failed": "not begun: no time was left"})
            continue
        print(f"== {part.name}: {left:.0f} s left", flush=True)
        # Each draws the same numbers whether it runs alone or after the others.
        torch.manual_seed(0)
        seconds = allowed(part, parts[number + 1 :], left)
        try:
            run(part, context, seconds, partial(flush, part.name))
        except UnusableError:
            restart(end - time.monotonic())
    context.release()


def restart(left: float) -> None:
    """This programme again, in a process whose device is usable, with the parts that are left."""
    words = [*sys.argv[1:], "--resume", "--seconds", f"{left:.0f}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *words])


def main() -> None:
    each = ", ".join(f"{part.name} {part.seconds:g}" for part in PARTS)
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Seconds that each part may take, estimated: {each}.",
    )
    parser.add_argument("--only", help="parts to run, by name; the page keeps the others")
    parser.add_argument("--resume", action="store_true", help=RESUME)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--name", default="gpu", help="of the files that are written")
    parser.add_argument("--output", type=Path, help="folder for results")
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu goes with --quick: the sizes are a GPU's")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"there is no device {options.device}; --device cpu --quick needs none")
    with tempfile.TemporaryDirectory() as scratch:
        nowhere = options.quick and not ASKED
        folder = (options.output or (Path(scratch) if nowhere else RESULTS)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        programme(options, folder)
        print((folder / f"{options.name}.md").read_text())


if __name__ == "__main__":
    main()
