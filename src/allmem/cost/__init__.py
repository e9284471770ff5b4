"""What a model costs: closed forms and measurements."""

from allmem.cost.compare import Comparison, compare
from allmem.cost.overview import Overview

__all__ = ["Comparison", "Overview", "compare"]
