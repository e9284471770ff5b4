"""What a user can choose about the short-term and the long-term memory: small frozen dataclasses,
a file for each.

Plain Python on purpose: nothing here imports torch or transformers, so that the command line can
validate its arguments before it loads either. ``allmem.models.configuration.AllMemConfig`` nests
them in a checkpoint's ``config.json``. What only one memory lets choose stands beside that memory.
"""

from allmem.config.heads import Fusion, HeadOptions
from allmem.config.memory import MATRICES, MemoryConfig
from allmem.config.options import Options, require_choice, require_positive
from allmem.config.projections import KeyNorm, ProjectionOptions, ReadScope, WriteScope
from allmem.config.window import WindowConfig, check_chunk_fits_window

__all__ = [
    "MATRICES",
    "Fusion",
    "HeadOptions",
    "KeyNorm",
    "MemoryConfig",
    "Options",
    "ProjectionOptions",
    "ReadScope",
    "WindowConfig",
    "WriteScope",
    "check_chunk_fits_window",
    "require_choice",
    "require_positive",
]
