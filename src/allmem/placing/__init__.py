"""Which layers of a model need full attention, and in which a memory could do most."""

from allmem.placing.layers import Damage, Placement, candidates, pattern_of, place
from allmem.placing.reading import fact_rows, open_converted, text_rows

__all__ = [
    "Damage",
    "Placement",
    "candidates",
    "fact_rows",
    "open_converted",
    "pattern_of",
    "place",
    "text_rows",
]
