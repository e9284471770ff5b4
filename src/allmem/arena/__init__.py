"""The arena: memories compared in one slot, from one teacher, on the same tokens, equally large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allmem._lazy import lazily

if TYPE_CHECKING:
    from allmem.arena.config import ArenaConfig, ArenaSizes, Entrant, EvaluationConfig, load_arena
    from allmem.arena.holding import Arena, Outcome

__all__ = [
    "Arena",
    "ArenaConfig",
    "ArenaSizes",
    "Entrant",
    "EvaluationConfig",
    "Outcome",
    "load_arena",
]

__getattr__ = lazily(
    __name__,
    {
        "config": "ArenaConfig ArenaSizes Entrant EvaluationConfig load_arena",
        "holding": "Arena Outcome",
    },
)
