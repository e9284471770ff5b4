"""Token mixers: the contract, the registry, and one file for each kind."""

from allmem.memory.projections import (
    AttentionWeights,
    Features,
    Leaving,
    Narrowing,
    Wanted,
    Written,
)
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.mixers.registry import MemoryKind, expand_pattern, mixer_names, register_memory

# Each registers its names.
from allmem.mixers import (  # isort: skip
    allmem,
    blocks,
    camelot,
    compressive,
    delta,
    eviction,
    gla,
    infini,
    ladder,
    lizard,
    mamba2,
    mesa,
    several,
    titans,
    ttt,
)

__all__ = [
    "AttentionWeights",
    "Capabilities",
    "Features",
    "Leaving",
    "MemoryKind",
    "MemoryMixer",
    "Mixer",
    "Narrowing",
    "Wanted",
    "Written",
    "allmem",
    "blocks",
    "camelot",
    "compressive",
    "delta",
    "eviction",
    "expand_pattern",
    "gla",
    "infini",
    "ladder",
    "lizard",
    "mamba2",
    "mesa",
    "mixer_names",
    "register_memory",
    "several",
    "titans",
    "ttt",
]
