"""The recall task asks what it says: every answer was tied before, as often in sight as promised,
and a seed repeats it. The shipped teacher knows the task.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask
from allmem.errors import AllMemError

TEACHER = Path(__file__).parents[1] / "fixtures" / "recall_teacher"

TASKS = [
    pytest.param(RecallTask(), id="T128-K32"),
    pytest.param(RecallTask(length=24, keys=4), id="T24-K4"),
    pytest.param(RecallTask(length=66, keys=8, vocabulary=8), id="T66-all-keys"),
]


def draw(task: RecallTask, batch: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    return task.sample(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_is_the_value_that_the_key_was_tied_to(task: RecallTask) -> None:
    ids, answers = draw(task)
    assert ids.shape == answers.shape == (64, task.length)
    for row, wanted in zip(ids.tolist(), answers.tolist(), strict=True):
        pairs = list(zip(row[::2], row[1::2], strict=True))
        ties = dict(pairs[: task.keys])
        assert len(ties) == task.keys
        assert all(0 <= k < task.vocabulary <= v < task.vocab_size for k, v in pairs)
        assert pairs[task.keys :] == [(k, ties[k]) for k, _ in pairs[task.keys :]]
        questions = [ties[key] for key, _ in pairs[task.keys :]]
        assert wanted[task.first_question :: 2] == questions
        assert all(a == IGNORED for a in wanted[: task.first_question] + wanted[1::2])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("window", [1, 2, 5, 32])
def test_within_says_which_values_a_window_shows(task: RecallTask, window: int) -> None:
    ids, answers = draw(task, batch=4)
    seen = task.within(ids, window)
    for row, wanted, found in zip(ids.tolist(), answers.tolist(), seen.tolist(), strict=True):
        for t in range(task.length):
            visible = range(max(1, t - window + 1), t)
            near = any(j % 2 and row[j - 1] == row[t] for j in visible)
            assert found[t] == (wanted[t] != IGNORED and near)


def test_a_window_of_32_shows_about_two_answers_in_five_wherever_it_stands() -> None:
    task = RecallTask()
    ids, _ = draw(task, batch=4096)
    share = task.within(ids, 32)[:, task.first_question :: 2].float().mean(0)
    assert 0.41 < share.mean() < 0.42
    assert 0.36 < share.min() <= share.max() < 0.52


def test_a_key_tells_nothing_of_its_value_in_another_sequence() -> None:
    task = RecallTask(length=24, keys=4, vocabulary=8)
    ids, _ = draw(task, batch=8192)
    key, value = ids[:, 0], ids[:, 1] - task.vocabulary
    counts = torch.zeros(8, 8).index_put_((key, value), torch.ones(8192), accumulate=True)
    # 128 times each on average, with a deviation of 11.
    assert counts.min() > 70
    assert counts.max() < 190


def test_a_seed_repeats_the_sequences_and_another_does_not() -> None:
    task = RecallTask()
    same = [torch.equal(a, b) for a, b in zip(draw(task), draw(task), strict=True)]
    assert same == [True, True]
    assert not torch.equal(draw(task)[0], draw(task, seed=1)[0])
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(task.sample(64, generator)[0], task.sample(64, generator)[0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"keys": 65}, "keys = 65 must lie between 1 and vocabulary = 64"),
        ({"keys": 0}, "keys = 0 must"),
        ({"length": 64}, "length = 64 must be even and above 64"),
        ({"length": 127}, "length = 127 must be even"),
    ],
)
def test_sizes_that_leave_no_question_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        RecallTask(**sizes)


def test_the_teacher_knows_the_task() -> None:
    teacher = LlamaForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    assert teacher.config.num_hidden_layers == 2
    ids, answers = draw(RecallTask())
    with torch.no_grad():
        predicted = teacher(ids).logits.argmax(-1)
    asked = answers != IGNORED
    assert (predicted == answers)[asked].float().mean() >= 0.99
