"""Text as training and evaluation sequences.

``build_data`` makes a folder of packed, masked samples from data sets, files and builders;
``RowStream`` reads it. ``Sequences`` cuts plain text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allmem.data.sequences import Sequences, spread_sequences

if TYPE_CHECKING:
    from allmem.data.build import build_data
    from allmem.data.config import DataConfig, load_config
    from allmem.data.stream import RowStream, collate

__all__ = [
    "DataConfig",
    "RowStream",
    "Sequences",
    "build_data",
    "collate",
    "load_config",
    "spread_sequences",
]

_LAZY = {
    "build_data": "build",
    "DataConfig": "config",
    "load_config": "config",
    "RowStream": "stream",
    "collate": "stream",
}
# Training on plain text needs none of these, and they import tokenizers.


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
