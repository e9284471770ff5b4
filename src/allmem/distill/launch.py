"""A recipe carried out: its model loaded, its rows read, its run started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from allmem.data import Sequences
from allmem.data.fact_lists import FactLists, FactWriter
from allmem.data.interviews import Interviewer, Interviews
from allmem.data.made_rows import RowWriter
from allmem.data.recitations import Recitations, Reciter
from allmem.data.shards import read_index
from allmem.distill.config import DistillConfig
from allmem.distill.evaluate import Comparison
from allmem.distill.mixture import MixedRows
from allmem.distill.online import online_rows
from allmem.distill.progress import Step
from allmem.distill.recipe import (
    RECIPE,
    DataSource,
    OnPolicySource,
    Recipe,
    recipe_text,
)
from allmem.distill.responses import response_rows
from allmem.distill.rows import FolderRows, ListRows, MadeRows, Row, Rows, TextRows, held_out_rows
from allmem.distill.run import Outcome, distill
from allmem.distill.run_files import prepare_folder
from allmem.distill.teacher import OtherModel, Stored, Teacher
from allmem.documents import read_document
from allmem.errors import AllMemError
from allmem.files import atomic_path
from allmem.models.adapter import adapter_note
from allmem.opening import OpenedModel, open_base, open_model
from allmem.prompts import plain_ids

__all__ = ["read_rows", "run_recipe"]

HELD_OUT_SHARE = 0.1
"""Of the last text, where no other is named."""

WRITERS: dict[type, Callable[..., RowWriter]] = {
    FactLists: FactWriter,
    Recitations: Reciter,
    Interviews: Interviewer,
}
"""Who makes the rows of a source."""


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_compared: Callable[[str, Comparison], None] | None = None,
) -> Outcome:
    """Load what a recipe names, distil, and leave adapter and figures in its folder.

    Args:
        resume: go on with the run that the folder holds.
        on_step, on_compared: see ``distill``.

    Raises:
        AllMemError: on bad input of any kind; nothing is lost.
    """
    device = recipe.device or _own_device()
    processes = PartialState(cpu=_is_cpu(device))
    # Before minutes of loading rather than after; the first process alone, since the others would
    # find what it writes.
    if processes.is_main_process:
        folder = prepare_folder(recipe.output, resume)
        if not resume:
            with atomic_path(folder / RECIPE) as part:
                part.write_text(recipe_text(recipe) + "\n")
    opened = open_model(
        recipe.model,
        recipe.conversion,
        adapter=recipe.adapter,
        other_base=recipe.other_base,
        dtype=recipe.dtype,
        device=device,
    )
    if opened.window is not None or opened.chunk is not None:
        raise AllMemError(
            f"{', '.join(recipe.conversion.reading)}: a memory is trained with the sizes that it "
            "was converted with; leave them out, convert again, or draw them (training.random)"
        )
    rows, held_out = read_rows(recipe.data, opened, recipe.training)
    return distill(
        opened.model,
        rows,
        held_out,
        recipe.training,
        Path(recipe.output),
        teacher=_teacher(recipe, opened),
        began=None if recipe.adapter is None else adapter_note(recipe.adapter),
        on_step=on_step,
        on_compared=on_compared,
    )


def read_rows(
    source: DataSource, opened: OpenedModel, training: DistillConfig, window: int | None = None
) -> tuple[Rows, list[Row]]:
    """The training rows and the held-out ones.

    Args:
        window: that what made rows ask for is older than; ``None`` for the model's, or the largest
            that is drawn.

    Raises:
        AllMemError: if a file is missing, or too short for a row.
    """
    tokenizer, seed = opened.tokenizer, training.seed
    if source.on_policy is not None:
        return _online(source, source.on_policy, opened, training)
    if source.mixture:
        return _mixed(source, opened, training, window)
    if (made := source.made) is not None:
        sizes = training.random
        if window is None:
            window = opened.model.config.window if sizes is None else max(sizes.windows)
        kind = WRITERS[type(made)]
        judge = kind(made, tokenizer, window, seed, held_out=True)
        own = MadeRows(kind(made, tokenizer, window, seed))
        return own, [judge.row(i) for i in range(source.evaluated)]
    if source.folder is not None:
        back = 0 if source.held_out else source.evaluated
        folder = FolderRows(source.folder, source.mix or None, seed, held_back=back)
        if source.held_out is None:
            return folder, folder.held_back
        return folder, FolderRows(source.held_out, held_back=source.evaluated).held_back
    if source.responses is not None:
        answers = response_rows(source.responses, source.length, tokenizer)
        if source.held_out is not None:
            judged = response_rows(source.held_out, source.length, tokenizer)
            return ListRows(answers, seed, source.responses), judged[: source.evaluated]
        if len(answers) < 2:
            raise AllMemError(
                f"{source.responses} fills one row of {source.length} tokens, so none would be "
                "left to be judged by; collect more, choose a shorter data.length, or name "
                "data.held_out"
            )
        # A small file still leaves something to learn from.
        back = min(source.evaluated, max(len(answers) // 5, 1))
        return ListRows(answers[:-back], seed, source.responses), answers[-back:]
    documents = [_document(tokenizer, text) for text in source.texts]
    if source.held_out is not None:
        other = _document(tokenizer, source.held_out)
    else:
        last = documents[-1]
        cut = int(len(last) * (1 - HELD_OUT_SHARE))
        documents[-1], other = last[:cut], last[cut:]
    rows = TextRows(Sequences(documents, source.length, seed))
    return rows, held_out_rows(other, source.length, source.evaluated)


def _mixed(
    source: DataSource, opened: OpenedModel, training: DistillConfig, window: int | None
) -> tuple[Rows, list[Row]]:
    """Rows of every part in turn; judged by some of each."""
    each = max(1, source.evaluated // len(source.mixture))
    parts, judged = [], []
    for share, part in source.parts:
        part = dataclasses.replace(part, evaluated=each)
        rows, held_out = read_rows(part, opened, training, window)
        parts.append((share, rows))
        judged += held_out
    return MixedRows(parts), judged


def _online(
    source: DataSource, own: OnPolicySource, opened: OpenedModel, training: DistillConfig
) -> tuple[Rows, list[Row]]:
    """On-policy rows, with other data beside them if wanted; judged by the other data too."""
    fixed, judged = None, None
    if own.share < 1:
        rest = dataclasses.replace(source, on_policy=None)
        fixed, judged = read_rows(rest, opened, training)
    rows, answers = online_rows(
        opened,
        own.prompts,
        length=source.length,
        evaluated=source.evaluated,
        seed=training.seed,
        max_new_tokens=own.max_new_tokens,
        thinking=own.thinking,
        together=training.batch * training.accumulate,
        share=own.share,
        fixed=fixed,
    )
    return rows, judged or answers


def _document(tokenizer: Any, name: str) -> Tensor:
    return torch.tensor(plain_ids(tokenizer, read_document(name)), dtype=torch.int64)


def _teacher(recipe: Recipe, opened: OpenedModel) -> Teacher | None:
    source = recipe.teacher
    if source.kind == "own":
        return None
    if source.kind == "stored":
        _check_stored(recipe.data, opened)
        return Stored()
    assert source.model is not None
    model, tokenizer = open_base(source.model, dtype=source.dtype, device=source.device)
    if tokenizer.get_vocab() != opened.tokenizer.get_vocab():
        raise AllMemError(
            f"the teacher {source.model} has another tokenizer than the student; a teacher must "
            "share it, token by token"
        )
    return OtherModel(model, opened.model)


def _check_stored(source: DataSource, opened: OpenedModel) -> None:
    """Refuse answers that are not there, or that name words which the student does not have."""
    teacher = None if source.folder is None else read_index(Path(source.folder)).teacher
    if teacher is None:
        raise AllMemError(
            "teacher.kind = stored needs answers in data.folder; make them with `allmem data teach`"
        )
    own = opened.model.get_input_embeddings().num_embeddings
    if teacher["words"] > own:
        raise AllMemError(
            f"the stored teacher {teacher['name']} has {teacher['words']} words, the student "
            f"{own}; a teacher must share the student's vocabulary"
        )


def _is_cpu(device: str | None) -> bool:
    return device == "cpu" if device is not None else not torch.cuda.is_available()


def _own_device() -> str | None:
    """Of this process, where several were launched."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or not torch.cuda.is_available():
        return None
    return f"cuda:{rank}"
