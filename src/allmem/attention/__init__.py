"""The short-term memory: attention to the first S tokens and to the last W (paper section 3.2).

Pure tensors. Knows of rows of tokens (``allmem.layout``) and their keys; not of models, of rotary
embeddings or of the long-term memory.
"""

from allmem.attention.backend import (
    BACKENDS,
    finds_rows,
    full_attention,
    use_backend,
    window_attention,
    window_mass,
)
from allmem.attention.state import GrowingState, RingState, ring_slots

__all__ = [
    "BACKENDS",
    "GrowingState",
    "RingState",
    "finds_rows",
    "full_attention",
    "ring_slots",
    "use_backend",
    "window_attention",
    "window_mass",
]
