"""Token mixers: the contract, the registry, and one file for each kind."""

from allmem.memory.projections import AttentionWeights, Features, Written
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.mixers.registry import MemoryKind, expand_pattern, mixer_names, register_memory

# Each registers its names.
from allmem.mixers import allmem, delta, gla, lizard, mamba2, mesa, several  # isort: skip
from allmem.mixers import titans, ttt  # isort: skip
from allmem.mixers import camelot, compressive, infini  # isort: skip
from allmem.mixers import blocks, eviction, ladder  # isort: skip

__all__ = [
    "AttentionWeights",
    "Capabilities",
    "Features",
    "MemoryKind",
    "MemoryMixer",
    "Mixer",
    "Written",
    "allmem",
    "blocks",
    "delta",
    "eviction",
    "expand_pattern",
    "ladder",
    "mixer_names",
    "register_memory",
]
