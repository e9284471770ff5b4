"""Small sources and builds for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from allmem.data.build import build_data
from allmem.data.config import DataConfig
from allmem.data.shards import Index
from tests.data.tokenizers import small_tokenizer

TOKENIZER = small_tokenizer("qwen3")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different lengths, all different."""
    return [
        {
            "prompt": f"Question {seed} {i}: what does the river do? " + "water " * (i * 7 % 23),
            "response": f"Answer {i}. " + " ".join(map(str, range(i * 5 % 17))),
        }
        for i in range(count)
    ]


def config(*sources: dict[str, Any], **values: Any) -> DataConfig:
    made = {"lengths": {"short": 128, "long": 400}, "shard_tokens": 1500, **values}
    return DataConfig(model="none", sources=tuple(sources), **made)


def build(values: DataConfig, folder: Path) -> Index:
    return build_data(values, folder, tokenizer=TOKENIZER)
