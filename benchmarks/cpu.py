"""Everything that is measured on a CPU, part by part, and one page of targets.

    python -m benchmarks.cpu [--only startup,reading] [--resume]

Each part is a module of its own, ``python -m benchmarks.PART``, and runs in a process of its own,
so that memory and threads are clean; it writes its own results, and the page (``cpu.md``) is
written anew after each. A part that fails is noted, and the next one runs. The layers of others are
measured by ``--peers-python``, if that is there (``benchmarks/peers.sh`` makes it): ours and theirs
in one process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RESULTS, machine
from benchmarks.summary import Part, load, merged, write

ROOT = Path(__file__).parents[1]
TITLE = "Measured on a CPU"
WANTED = (
    "loop forward",
    "loop both",
    "titans",
    "prefill 4k",
    "prefill 32k",
    "prefill growth",
    "decode growth",
    "million",
    "step",
    "startup",
)
"""Targets of this programme."""


@dataclass(frozen=True)
class Module:
    """A part."""

    name: str
    """Of the module, and of its results."""
    minutes: float
    """About how long it takes on two cores; an estimate from small trials."""
    arguments: tuple[str, ...] = ()


PARTS = (
    Module("startup", 3),
    Module("inner_loop", 3),
    Module("peers", 5),
    Module("step_share", 4),
    Module("where_time_goes", 4),
    Module("million", 5),
    Module("doubling", 10),
    Module("reading", 28),
)
"""In this order: the longest last."""


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Of a part: where it writes, as many threads as said, and nothing from the network."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "ALLMEM_RESULTS": str(folder),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run(module: Module, folder: Path, options: argparse.Namespace) -> Part:
    """What a part left, with the seconds that it took; if it failed, why."""
    python = sys.executable
    if module.name == "peers" and options.peers_python.is_file():
        python = str(options.peers_python)
    command = [python, "-m", f"benchmarks.{module.name}", *module.arguments]
    command += ["--quick"] if options.quick else []
    own = environment(folder, options.threads)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=own, check=False)
    took = round(time.perf_counter() - begin, 1)
    found = load(folder / f"{module.name}.json")
    if done.returncode or found is None:
        said = f"failed: exit code {done.returncode}"
        return {"title": module.name, "failed": said, "took": took}
    return found | {"took": took}


def chosen(only: str | None) -> list[Module]:
    """The parts that are asked for, in their order.

    Raises:
        SystemExit: if one is not known.
    """
    names = [module.name for module in PARTS]
    wanted = only.split(",") if only else names
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"error: there is no part {unknown[0]!r}; there are {', '.join(names)}")
    return [module for module in PARTS if module.name in wanted]


def kept(folder: Path) -> dict[str, Part]:
    """Parts that the page holds already, those that failed left out."""
    page = load(folder / "cpu.json") or {}
    return {n: part for n, part in page.get("parts", {}).items() if "failed" not in part}


def main() -> None:
    total = sum(module.minutes for module in PARTS)
    each = ", ".join(f"{module.name} {module.minutes:g}" for module in PARTS)
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"About {total:g} minutes on two cores (estimated), by part: {each}.",
    )
    parser.add_argument("--only", help="parts to run, by name; the page keeps the others")
    parser.add_argument("--resume", action="store_true", help="leave out parts that the page has")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--output", type=Path, help="folder for results")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    peers = ROOT / ".venv-peers" / "bin" / "python"
    parser.add_argument("--peers-python", type=Path, default=peers)
    options = parser.parse_args()
    modules = chosen(options.only)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.output or (Path(scratch) if options.quick else RESULTS)
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        before = kept(folder) if options.only or options.resume else {}
        found = dict(before)
        for module in modules:
            if options.resume and module.name in before:
                continue
            print(f"== {module.name}: about {module.minutes:g} minutes", flush=True)
            found[module.name] = run(module, folder, options)
            ordered = {m.name: found[m.name] for m in PARTS if m.name in found}
            # After every part, so that a run that is stopped has lost one part at most.
            ran_on = machine() | {"threads": options.threads}
            write(merged(TITLE, ran_on, ordered, WANTED), folder, "cpu", tables=False)
        page = folder / "cpu.md"
        print(page.read_text() if page.is_file() else "nothing ran")


if __name__ == "__main__":
    main()
