"""Teachers other than the student's own weights."""

from __future__ import annotations

import pytest
import torch

from allmem.distill import Distillation, DistillConfig
from allmem.distill.config import Objective
from allmem.distill.rows import counted
from allmem.distill.sizes import Sizes
from allmem.distill.teacher import OtherModel, Stored, Teacher
from allmem.errors import AllMemError
from tests.distill.tiny import C, S, W, make_base, make_model, make_packed

SIZES = Sizes(W, S, C)


def loss(teacher: Teacher | None, segment: int | None = None) -> tuple[float, float]:
    """Loss and the norm of its gradient."""
    student = make_model()
    student.freeze_base()
    batch = make_packed()
    batch["labels"] = counted(batch["labels"], batch["position_ids"], W)
    config = DistillConfig(steps=1, segment=segment, objective=Objective(ce_weight=0.1))
    total, _ = Distillation(student, config, "kl", teacher)(**batch, sizes=SIZES)
    total.backward()
    squares = sum(
        float(p.grad.square().sum())
        for p in student.memory_parameters().values()
        if p.grad is not None
    )
    return float(total.detach()), squares**0.5


@pytest.mark.parametrize("segment", [None, 9])
def test_the_original_as_a_model_of_its_own_teaches_the_same(segment: int | None) -> None:
    own = loss(None, segment)
    assert loss(OtherModel(make_base(), make_model()), segment) == pytest.approx(own, rel=1e-6)
    other = loss(OtherModel(make_base(seed=1), make_model()), segment)
    assert other[0] != pytest.approx(own[0], rel=1e-2)


def test_a_converted_teacher_answers_with_its_memories() -> None:
    teacher = make_model(seed=3)
    found = loss(OtherModel(teacher, make_model()))
    with torch.no_grad():
        for name, parameter in teacher.memory_parameters().items():
            if name.endswith("alpha"):
                parameter.zero_()
    assert found[0] != pytest.approx(loss(OtherModel(teacher, make_model()))[0], rel=1e-3)


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(AllMemError, match="50 words, the student 43"):
        OtherModel(make_base(vocabulary=50), make_model())


def test_rows_without_stored_answers_are_refused() -> None:
    with pytest.raises(AllMemError, match="allmem data teach"):
        loss(Stored())
