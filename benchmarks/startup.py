"""How long a user waits for ``allmem --help`` and for the message after a mistake.

    python -m benchmarks.startup

Each command runs in a process of its own, several times; beside them a Python that does nothing.
Mistakes are of two kinds: an option that no command knows, with every command; and values that make
no sense, which commands find by themselves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from allmem.cli.main import COMMANDS, is_available
from benchmarks.measure import Timing, add_options, record, timed
from benchmarks.targets import Finding

ALLMEM = (sys.executable, "-m", "allmem")
USAGE = 2
"""Exit code after a mistake."""
KINDS = ("asked for", "unknown word", "bad value")
VALUES = (
    "convert smollm2 nosuch --window -1",
    "cost qwen3-0.6b --lengths x",
    "data build nosuch.yaml --output nosuch",
    "distill nosuch",
    "report nosuch",
    "arena nosuch.yaml",
)
"""Mistakes that leave nothing behind and need no weights."""


def cases() -> dict[str, str]:
    """Arguments of ``allmem``, and of which kind they are."""
    found = {"--help": KINDS[0], "--version": KINDS[0], "nosuch": KINDS[1]}
    names = [command.name for command in COMMANDS if is_available(command)]
    found |= {f"{name} --nosuch": KINDS[1] for name in names}
    return found | {words: KINDS[2] for words in VALUES if words.split()[0] in names}


def run(words: tuple[str, ...], code: int) -> None:
    # A path that is relative to here means nothing in another folder.
    found = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    environment = os.environ | {"PYTHONPATH": ":".join(found)}
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            words, cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode != code:
        said = f"{' '.join(words[1:])} ended with {done.returncode}, not {code}"
        raise SystemExit(f"{said}:\n{done.stderr}")


def allmem(words: str, kind: str, runs: int) -> Timing:
    code = 0 if kind == KINDS[0] else USAGE
    return timed(partial(run, (*ALLMEM, *words.split()), code), runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--value-runs", type=int, default=3, help="of bad values")
    add_options(parser, "startup")
    options = parser.parse_args()
    chosen = cases()
    if options.quick:
        chosen = {words: chosen[words] for words in ("--help", "nosuch")}
    found: dict[str, Timing] = {}
    for words, kind in chosen.items():
        runs = 1 if options.quick else options.value_runs if kind == KINDS[2] else options.runs
        found[words] = allmem(words, kind, runs)
        print("allmem", words, f"{found[words].median:.3f} s", flush=True)
    findings = [Finding("startup", "allmem --help", found["--help"].median)]
    for kind in KINDS[1:]:
        own = {words: found[words].median for words in found if chosen[words] == kind}
        if own:
            slowest = max(own, key=lambda words: own[words])
            findings.append(Finding("startup", f"{kind}: allmem {slowest}", own[slowest]))
    rows = [
        {"command": f"allmem {words}", "kind": chosen[words], "seconds": timing}
        for words, timing in found.items()
    ]
    python = timed(partial(run, (sys.executable, "-c", "pass"), 0), options.runs)
    rows.append({"command": "python -c pass", "kind": "", "seconds": python})
    counts = f"{options.runs} runs, of {options.value_runs} for bad values"
    notes = [f"Median of {counts}, after a warm-up (fastest–slowest); the slowest of each kind."]
    record(options.name, "Startup", rows, notes, findings, options)


if __name__ == "__main__":
    main()
