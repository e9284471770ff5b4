"""What a model costs: closed forms and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allmem._lazy import lazily

if TYPE_CHECKING:
    from allmem.cost.comparing import Comparison, compare
    from allmem.cost.overview import Overview

__all__ = ["Comparison", "Overview", "compare"]

__getattr__ = lazily(__name__, {"comparing": "Comparison compare", "overview": "Overview"})
