"""On-policy rows: what the student says now, and nothing of it learned but its own words."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from allmem.data.labels import IGNORED
from allmem.distill import DistillConfig, ListRows, Step, distill
from allmem.distill.online import OnlineRows, online_rows
from allmem.distill.precision import training_weights
from allmem.distill.prompts import Prompts, read_prompts
from allmem.distill.responder import Responder
from allmem.distill.rows import Batches, Row, own_sizes, plain_row
from allmem.errors import AllMemError
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from tests.distill.chats import QUESTIONS, make_student, write_prompts
from tests.distill.tiny import randomise

NEW = 8
DRAWN = Sampling(temperature=1.0, seed=0)


@pytest.fixture(scope="module")
def student() -> OpenedModel:
    return make_student()


@pytest.fixture
def prompts(student: OpenedModel, tmp_path: Path) -> Prompts:
    return read_prompts([write_prompts(tmp_path)], student.tokenizer)


def make(student: OpenedModel, prompts: Prompts, **options: Any) -> OnlineRows:
    return OnlineRows(Responder(student, prompts.end, DRAWN, NEW), prompts, **options)


def first(rows: OnlineRows, count: int, begin: int = 0, **options: int) -> list[Row]:
    return list(islice(rows.read(begin, **options), count))


def same(one: Row, other: Row) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_labels_cover_exactly_the_response(student: OpenedModel, prompts: Prompts) -> None:
    found = first(make(student, prompts, together=3), 9)
    stop = Responder(student, prompts.end, DRAWN).stop
    for i, row in enumerate(found):
        prompt = prompts.listed[i % len(prompts)].ids
        ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
        assert ids[: len(prompt)] == prompt
        assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
        assert torch.equal(row["position_ids"], torch.arange(len(ids)))
        response = ids[len(prompt) :]
        assert 1 <= len(response) <= NEW
        assert (response[-1] in stop) or len(response) == NEW
        assert not any(token in stop for token in response[:-1])
        assert all(tensor.dtype == torch.int64 for tensor in row.values())


def test_a_row_is_a_function_of_weights_and_number(student: OpenedModel, prompts: Prompts) -> None:
    rows = make(student, prompts, together=2)
    whole = first(rows, 10)
    assert all(map(same, whole, first(make(student, prompts, together=4), 10)))
    assert all(map(same, whole[4:], first(rows, 6, begin=4)))
    for rank in range(2):
        assert all(map(same, whole[rank::2], first(rows, 5, rank=rank, world=2)))
    # The same prompt, another number.
    assert not same(whole[0], whole[7])


def test_rows_follow_the_weights(prompts: Prompts) -> None:
    student = make_student()
    rows = make(student, prompts, together=2)
    before = first(rows, 4)
    weights = copy.deepcopy(student.model.state_dict())
    stream = rows.read(0)
    assert all(map(same, before[:2], islice(stream, 2)))
    randomise(student.model)
    assert not all(map(same, before[2:], islice(stream, 2)))
    assert not all(map(same, before, first(rows, 4)))
    student.model.load_state_dict(weights)
    assert all(map(same, before, first(rows, 4)))


@pytest.mark.parametrize("training", [True, False])
def test_the_caller_s_mode_and_random_numbers_are_left_alone(
    student: OpenedModel, prompts: Prompts, training: bool
) -> None:
    student.model.train(training)
    before = torch.get_rng_state(), random.getstate()
    first(make(student, prompts, together=2), 4)
    assert all(module.training == training for module in student.model.modules())
    student.model.eval()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def fixed_rows(count: int = 5) -> ListRows:
    """Rows that no prompt gives: their first tokens are their numbers."""
    return ListRows([plain_row(torch.full((20,), i)) for i in range(count)])


def test_a_share_of_the_rows_is_on_policy(student: OpenedModel, prompts: Prompts) -> None:
    fixed = fixed_rows()
    rows = make(student, prompts, together=4, share=0.25, fixed=fixed)
    count = 200
    own = [rows._is_on_policy(i) for i in range(count)]
    assert 0.15 < sum(own) / count < 0.35
    whole, online = first(rows, 24), make(student, prompts).respond(range(24))
    beside = list(islice(fixed.read(0), 24))
    assert any(own[:24])
    for i, row in enumerate(whole):
        assert same(row, online[i] if own[i] else beside[i])
    assert all(map(same, whole[8:], first(rows, 16, begin=8)))
    for rank in range(2):
        assert all(map(same, whole[rank::2], first(rows, 12, rank=rank, world=2)))
    assert rows.mean < make(student, prompts).mean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.5}, "name other data"),
        ({"fixed": fixed_rows()}, "name other data"),
        ({"share": 0.0, "fixed": fixed_rows()}, "share = 0.0"),
        ({"share": 1.5}, "share = 1.5"),
        ({"together": 0}, "together = 0"),
    ],
    ids=["no-rest", "no-place-for-the-rest", "none", "more-than-all", "no-batch"],
)
def test_shares_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, student: OpenedModel, prompts: Prompts
) -> None:
    with pytest.raises(AllMemError, match=message):
        make(student, prompts, **options)


def test_sizes_and_fingerprint(student: OpenedModel, prompts: Prompts) -> None:
    rows = make(student, prompts)
    found = first(rows, len(prompts))
    assert rows.longest == max(len(prompt.ids) for prompt in prompts.listed) + NEW
    assert all(len(row["input_ids"]) <= rows.longest for row in found)
    assert sum(len(row["input_ids"]) for row in found) / len(found) <= rows.mean
    assert rows.fingerprint() == make(student, prompts, together=4).fingerprint()
    others = [
        make(student, prompts.part(slice(3))),
        make(student, prompts, share=0.5, fixed=fixed_rows()),
        OnlineRows(Responder(student, prompts.end, DRAWN, NEW + 1), prompts),
        OnlineRows(
            Responder(student, prompts.end, dataclasses.replace(DRAWN, seed=1), NEW), prompts
        ),
    ]
    assert len({rows.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_rows_cannot_be_made_ahead(student: OpenedModel, prompts: Prompts) -> None:
    config = DistillConfig(steps=1, positions="all")
    batches = Batches(make(student, prompts), config, own_sizes(student.model))
    loader: DataLoader[dict[str, Tensor]] = DataLoader(batches, batch_size=None, num_workers=1)
    with pytest.raises(AllMemError, match="set workers = 0"):
        next(iter(loader))


# In training


def config_of(**changes: Any) -> DistillConfig:
    values = {"steps": 4, "batch": 1, "accumulate": 2, "stage": "kl", "positions": "all", "lr": 0.1}
    return DistillConfig(**{**values, "checkpoint_steps": 1, **changes})


class StoppedError(Exception):
    pass


def train(
    folder: Path, prompts: str, dtype: torch.dtype, stop: int | None = None, **changes: Any
) -> list[tuple[int, float]]:
    """Number and loss of every step of a run, which may be stopped after one."""
    student = make_student(dtype=dtype, random=False)
    config = config_of(**changes)
    rows, held_out = online_rows(
        student,
        [prompts],
        length=60,
        evaluated=2,
        max_new_tokens=NEW,
        together=config.batch * config.accumulate,
    )
    found = []

    def note(step: Step) -> None:
        if step.number == stop:
            raise StoppedError
        found.append((step.number, step.loss))

    folder.mkdir(exist_ok=True)
    with contextlib.suppress(StoppedError):
        distill(student.model, rows, held_out, config, folder, on_step=note)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_resumed_run_meets_the_same_responses(dtype: torch.dtype, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [QUESTIONS[i] for i in (0, 3, 5, 6, 1, 4, 1)])
    whole = train(tmp_path / "a", prompts, dtype)
    begun = train(tmp_path / "b", prompts, dtype, stop=3)
    again = train(tmp_path / "b", prompts, dtype)
    assert len(whole) == 4
    assert dict(begun) | dict(again) == dict(whole)
    assert len(again) < 4


@pytest.mark.parametrize("stage", ["solve", "match"])
def test_every_stage_learns_from_them(stage: str, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [QUESTIONS[i] for i in (0, 3, 5, 6, 1, 4, 1)])
    assert len(train(tmp_path / "run", prompts, torch.float32, stage=stage, steps=2)) == 2


def test_generating_while_training_changes_no_weight(prompts: Prompts) -> None:
    student = make_student(dtype=torch.bfloat16)
    rows = make(student, prompts, together=2)
    with training_weights(student.model):
        before = copy.deepcopy(student.model.state_dict())
        first(rows, 2)
        for name, value in student.model.state_dict().items():
            assert torch.equal(value, before[name])
            assert value.dtype == before[name].dtype
        assert all(p.requires_grad for p in student.model.memory_parameters().values())


def test_rows_of_files_leave_some_to_be_judged_by(student: OpenedModel, tmp_path: Path) -> None:
    path = write_prompts(tmp_path)
    with pytest.warns(UserWarning, match="5 prompts; skipped: too_long 2"):
        rows, held_out = online_rows(student, [path], length=38, evaluated=8, max_new_tokens=12)
    assert len(rows.prompts) == 4
    assert len(held_out) == 1
    assert rows.longest <= 38
    with pytest.raises(AllMemError, match="length = 12 leaves no room"):
        online_rows(student, [path], length=12, evaluated=8, max_new_tokens=12)
    one = write_prompts(tmp_path, ["And?"])
    with pytest.raises(AllMemError, match="one prompt is not enough"):
        online_rows(student, [one], length=60, evaluated=8, max_new_tokens=12)
