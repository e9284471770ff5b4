"""Text as training and evaluation sequences."""

from allmem.data.sequences import Sequences, spread_sequences

__all__ = ["Sequences", "spread_sequences"]
