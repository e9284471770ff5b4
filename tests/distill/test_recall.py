"""A memory remembers: associative recall beyond the window, distilled from a two-layer teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import allmem
from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask
from allmem.distill import DistillConfig, distill
from allmem.distill.rows import Row
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.variants import without_memory, without_writing

TEACHER = Path(__file__).parents[1] / "fixtures" / "recall_teacher"
TASK = RecallTask()
WINDOW = 32
CHUNK = 32


class RecallRows:
    """Fresh sequences of which the answers are learned."""

    longest = TASK.length
    mean = float(TASK.length)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        number = first + rank
        while True:
            ids, answers = TASK.sample(1, torch.Generator().manual_seed(number))
            labels = torch.full_like(ids[0], IGNORED)
            labels[1:] = answers[0, :-1]
            yield {
                "input_ids": ids[0],
                "labels": labels,
                "position_ids": torch.arange(TASK.length),
            }
            number += world

    def fingerprint(self) -> str:
        return repr(TASK)


def accuracy(model: LlamaForCausalLM | AllMemForCausalLM) -> float:
    """Share of the answers that a model gives, on sequences that nobody was trained on."""
    ids, answers = TASK.sample(512, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        found = model(ids, use_cache=False).logits.argmax(-1)
    return float((found == answers)[answers != IGNORED].float().mean())


def teacher() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()


def distilled(**memory: float) -> AllMemForCausalLM:
    torch.manual_seed(0)
    model = allmem.convert(teacher(), window=WINDOW, sinks=0, chunk=CHUNK, memory=memory)
    config = DistillConfig(steps=200, batch=8, stage="kl", kl_lr=3e-3, positions="all")
    rows = RecallRows()
    held_out = [row for row, _ in zip(rows.read(10**7), range(2), strict=False)]
    distill(model, rows, held_out, config)
    return model


def test_the_teacher_knows_the_task() -> None:
    assert accuracy(teacher()) > 0.99


def test_a_distilled_memory_recalls_what_the_window_cannot() -> None:
    model = distilled(step=0.5, clip=4.0)
    assert accuracy(model) >= 0.97
    with without_memory(model):
        assert 0.40 < accuracy(model) < 0.45
    # It is what was written that answers, not what was learned.
    with without_writing(model):
        assert accuracy(model) < 0.5


def test_the_same_run_without_writing_recalls_nothing() -> None:
    # Inner rates so small that nothing is ever written, nor learned about them.
    assert accuracy(distilled(step=1e-25, clip=4.0)) < 0.5


@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_sequences_are_all_different(seed: int) -> None:
    rows = RecallRows()
    first = [row["input_ids"] for row, _ in zip(rows.read(seed), range(3), strict=False)]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[1], next(rows.read(seed + 1))["input_ids"])
