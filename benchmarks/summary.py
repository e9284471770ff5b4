"""One page of what many runs say of the targets.

A run leaves ``NAME.json`` (``benchmarks.measure.record``); this reads such files and writes the
table of targets with measured values, met or missed, beside where and with what each was measured.
Knows nothing of how anything is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allmem.files import atomic_path
from benchmarks.measure import QUICK, markdown, where
from benchmarks.targets import Finding, target_rows

__all__ = ["findings_of", "load", "merged", "page", "write"]

Part = dict[str, Any]
"""What a run left: ``title``, ``machine``, ``rows``, ``notes``, perhaps ``findings``; or ``failed``
with the reason."""


def load(path: Path) -> Part | None:
    """A run's file; ``None`` if there is none, or if it is none of ours."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "machine" in found else None


def findings_of(part: Part) -> list[Finding]:
    """What a run says of the targets."""
    return [Finding(**found) for found in part.get("findings", [])]


def merged(
    title: str, machine: dict[str, Any], parts: Mapping[str, Part], wanted: Sequence[str]
) -> Part:
    """The content of the page.

    Args:
        machine: of the programme that ran the parts.
        parts: by name, in the order of the page.
        wanted: targets that the programme is to measure; one that no part names did not run.
    """
    findings = [finding for part in parts.values() for finding in findings_of(part)]
    return {
        "title": title,
        "machine": machine,
        "targets": target_rows(findings, wanted),
        "parts": dict(parts),
        "quick": any(part.get("quick") for part in parts.values()),
    }


def page(content: Part, tables: bool) -> str:
    """Markdown.

    Args:
        tables: whether the parts' own tables are in it, or have files of their own.
    """
    machine = content["machine"]
    parts = [f"# {content['title']}", f"`{machine['command']}`, {machine['date']}", where(machine)]
    if content["quick"]:
        parts.append(QUICK)
    parts += ["## Targets", markdown(content["targets"]), "## Parts"]
    overview = []
    for name, part in content["parts"].items():
        shown = part.get("title", name) if tables else f"[{part.get('title', name)}]({name}.md)"
        overview.append(
            {
                "part": shown,
                "seconds": part.get("took", ""),
                "date": part.get("machine", {}).get("date", ""),
                "command": f"`{part['machine']['command']}`" if "machine" in part else "",
                "outcome": part.get("failed", "measured"),
            }
        )
    parts.append(markdown(overview))
    for part in content["parts"].values() if tables else ():
        if part.get("rows"):
            parts += [f"## {part['title']}", markdown(part["rows"])]
            parts.append("\n".join(f"- {note}" for note in part.get("notes", [])))
    return "\n\n".join(part for part in parts if part) + "\n"


def write(content: Part, folder: Path, name: str, tables: bool) -> None:
    """``NAME.json`` and ``NAME.md``, each complete or as it was before."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"{name}.json") as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
    with atomic_path(folder / f"{name}.md") as part:
        part.write_text(page(content, tables))
