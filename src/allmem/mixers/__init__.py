"""Token mixers: the contract, the registry, and one file for each kind."""

from allmem.memory.projections import AttentionWeights, Features
from allmem.mixers.base import Capabilities, Mixer
from allmem.mixers.registry import MemoryKind, expand_pattern, mixer_names, register_memory

__all__ = [
    "AttentionWeights",
    "Capabilities",
    "Features",
    "MemoryKind",
    "Mixer",
    "expand_pattern",
    "mixer_names",
    "register_memory",
]
