"""Who takes part in an arena: those that a file lists, and those that it includes."""

from __future__ import annotations

from allmem.arena.config import ArenaConfig, ArenaSizes, Entrant
from allmem.errors import AllMemError, unknown_name
from allmem.mixers.ablations import ABLATIONS
from allmem.mixers.registry import memory_kind, mixer_names

__all__ = ["BESIDE", "TEACHER", "WINDOW", "entrants_of"]

TEACHER, WINDOW = "teacher", "window alone"
"""Who stands beside the entrants in every report: full attention, and the window that the memories
stand beside."""
BESIDE = {"window", "full"}
"""What may stand in other layers than an entrant's."""


def entrants_of(config: ArenaConfig) -> dict[str, Entrant]:
    """Everybody by name: those that are listed, then what is included.

    Raises:
        AllMemError: on names that are unknown, taken or left out by mistake.
    """
    found = config.named()
    if "mixers" in config.include:
        taken = {entrant.mixer or name for name, entrant in found.items()}
        free = [name for name in mixer_names() if name not in taken | BESIDE]
        found |= {name: Entrant() for name in free}
    if "evicted" in config.include:
        found |= _evicted(found, config.sizes)
    if "ablations" in config.include:
        taken = {entrant.ablation for entrant in found.values() if entrant.ablation}
        found |= {name: Entrant(ablation=name) for name in ABLATIONS if name not in taken}
    for name in config.exclude:
        if name not in found:
            raise AllMemError(f"exclude: {unknown_name('entrant', name, found)}")
        del found[name]
    for name in (TEACHER, WINDOW):
        if name in found:
            raise AllMemError(f"entrants: {name!r} takes part in every arena; choose another name")
    if config.reference not in found:
        raise AllMemError(f"reference: {unknown_name('entrant', config.reference, found)}")
    return found


def _evicted(entrants: dict[str, Entrant], sizes: ArenaSizes) -> dict[str, Entrant]:
    """Those that write every token, writing only what attention no longer sees; without those that
    take part under a name of their own (AHN), and those whose chunk is all of the window, which
    find nothing again before that."""
    late = sizes.steps == sizes.window and not sizes.sinks
    kinds = {name: memory_kind(name) for name in mixer_names()}
    known = [(kind.build, kind.options({})) for kind in kinds.values() if kind is not None]
    found = {}
    for name, entrant in entrants.items():
        kind = kinds.get(name)
        if kind is None or entrant != Entrant(options=entrant.options):
            continue
        if getattr(kind.options(entrant.options), "write_scope", "evicted") == "evicted":
            continue
        if late and hasattr(kind.config, "chunk"):
            continue
        options = {**entrant.options, "write_scope": "evicted"}
        if (kind.build, kind.options(options)) not in known:
            found[f"{name}, evicted"] = Entrant(name, options)
    return found
