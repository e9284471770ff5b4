"""What a model costs: closed forms and measurements."""

from allmem.cost.overview import Overview

__all__ = ["Overview"]
