"""Text as training and evaluation sequences.

``build_data`` makes a folder of packed, masked samples from data sets, files and builders;
``RowStream`` reads it. ``Sequences`` cuts plain text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allmem._lazy import lazily

if TYPE_CHECKING:
    from allmem.data.build import build_data
    from allmem.data.config import DataConfig, load_config
    from allmem.data.sequences import Sequences, spread_sequences
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

__getattr__ = lazily(
    __name__,
    {
        "build": "build_data",
        "config": "DataConfig load_config",
        "sequences": "Sequences spread_sequences",
        "stream": "RowStream collate",
    },
)
