"""The arena: memories compared in one slot, from one teacher, on the same tokens, equally large."""

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
