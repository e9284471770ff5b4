"""A whole distillation: texts in, adapter and figures out.

Splits the text, compares before and after on what was held out, trains in between. The files of a
run lie in one folder: the adapter, the checkpoint to go on from, and the figures as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allmem.data import Sequences, spread_sequences
from allmem.distill.config import DistillConfig
from allmem.distill.evaluate import Comparison, Score, compare
from allmem.distill.trainer import CHECKPOINT, Step, Trainer
from allmem.errors import AllMemError
from allmem.files import atomic_path
from allmem.models.modeling import AllMemForCausalLM
from allmem.prompts import plain_ids

__all__ = ["RESULTS", "Outcome", "Texts", "distill", "prepare_folder", "split_texts"]

RESULTS = "results.json"
HELD_OUT_SHARE = 0.1
EVALUATED = 8
"""Held-out sequences: a few thousand positions, enough to tell a tenth of the window's KL."""


@dataclass(frozen=True)
class Texts:
    """Token ids to learn from and to be judged by."""

    training: list[Tensor]
    held_out: Tensor


@dataclass(frozen=True)
class Outcome:
    """The figures of a run, on the held-out text."""

    before: Comparison
    after: Comparison
    tokens: int
    seconds: float


def split_texts(tokenizer: Any, texts: Sequence[str], held_out: str | None) -> Texts:
    """Tokenise; without a held-out text the last tenth of the last text is kept back.

    Raises:
        AllMemError: if there is no text.
    """
    if not texts:
        raise AllMemError("there is no text to train on")
    training = [torch.tensor(plain_ids(tokenizer, text), dtype=torch.int64) for text in texts]
    if held_out is not None:
        other = torch.tensor(plain_ids(tokenizer, held_out), dtype=torch.int64)
        return Texts(training, other)
    last = training[-1]
    cut = int(len(last) * (1 - HELD_OUT_SHARE))
    return Texts([*training[:-1], last[:cut]], last[cut:])


def prepare_folder(folder: str, resume: bool) -> Path:
    """Make the folder of a run; refuse to start over one that is there.

    Raises:
        AllMemError: if it holds a run and ``resume`` is not asked for, or the other way round.
    """
    path = Path(folder)
    checkpoint = path / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise AllMemError(f"there is no {checkpoint} to resume from; leave out --resume")
    if not resume and checkpoint.is_file():
        raise AllMemError(
            f"{path} holds a run already; go on with it by --resume, or choose another folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def distill(
    model: AllMemForCausalLM,
    texts: Texts,
    config: DistillConfig,
    folder: Path | None = None,
    *,
    resume: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_compared: Callable[[str, Comparison], None] | None = None,
    evaluated: int = EVALUATED,
) -> Outcome:
    """Compare, train, compare.

    Args:
        on_compared: called with ("before" | "after", figures) as soon as they are known.
        evaluated: held-out sequences to compare on.

    Raises:
        AllMemError: if a text is too short, a file cannot be written, or training breaks down.
    """
    sequences = Sequences(texts.training, config.length, config.seed)
    held_out = spread_sequences(texts.held_out, config.length, evaluated)
    trainer = Trainer(model, sequences, config, folder, resume)
    before = _saved_before(folder) if resume else None
    if before is None:
        before = compare(model, held_out)
        _write_results(folder, before, None)
    if on_compared is not None:
        on_compared("before", before)
    trainer.run(on_step)
    after = compare(model, held_out, control=True)
    _write_results(folder, before, after)
    if on_compared is not None:
        on_compared("after", after)
    return Outcome(before, after, trainer.place.tokens, trainer.place.seconds)


def _write_results(folder: Path | None, before: Comparison, after: Comparison | None) -> None:
    if folder is None:
        return
    figures = {
        "before": dataclasses.asdict(before),
        "after": None if after is None else dataclasses.asdict(after),
    }
    with atomic_path(folder / RESULTS) as part:
        part.write_text(json.dumps(figures, indent=2) + "\n")


def _saved_before(folder: Path | None) -> Comparison | None:
    """The figures from before training, which a resumed run cannot measure any more."""
    if folder is None or not (folder / RESULTS).is_file():
        return None
    saved = json.loads((folder / RESULTS).read_text())["before"]
    teacher, window, memory = (Score(**saved[name]) for name in ("teacher", "window", "memory"))
    return Comparison(teacher, window, memory, saved["positions"])
