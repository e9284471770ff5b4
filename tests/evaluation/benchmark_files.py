"""Rows of long benchmarks, the files they come in, and what a task makes of them."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.task import Example, Setting, Task

VECTORS = Path(__file__).parents[1] / "fixtures" / "metrics"
MODEL = cast(EvaluatedModel, SimpleNamespace(tokenizer=None, reach=8192, bounded=False))


def row(number: int = 0, **values: Any) -> dict[str, Any]:
    """As LongBench and LV-Eval write it."""
    return {
        "_id": f"row-{number}",
        "context": f"Text {number // 2}. The lamp is blue.",
        "input": f"What colour is lamp {number}?",
        "answers": ["blue"],
        "length": 3000 * number,
        "language": "en",
        "all_classes": None,
        **values,
    }


def put(path: Path, rows: Sequence[dict[str, Any] | str], member: str | None = None) -> Path:
    """Write rows as the path's ending says; a text is a line as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows]
    data = "".join(line + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if member is not None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(member, data)
        return path
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def examples(task: Task, data: Path, model: EvaluatedModel = MODEL, **values: Any) -> list[Example]:
    """What a task asks about the rows of a folder."""
    return list(task.examples(Setting(data=data, **values), model))


def vectors(name: str) -> list[Any]:
    """Made-up answers with the scores that the official code gives them."""
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def vector_name(vector: dict[str, Any]) -> str:
    """For the names of tests."""
    return f"{vector['set']}-{vector['prediction'][:12]!a}"
