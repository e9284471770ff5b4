"""What the official benchmarks define: prompts, lengths of answers, lists of words.

The files under ``resources/benchmarks`` hold them word for word; a notice beside each names the
repository, the commit and the licence.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["benchmark"]


@cache
def benchmark(name: str) -> dict[str, Any]:
    """A benchmark's file; not to be changed by the caller."""
    file = resources.files("allmem") / "resources" / "benchmarks" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))
