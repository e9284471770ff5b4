"""Reading in segments changes nothing but the memory it takes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem import AllMemError
from allmem.distill import Distillation, DistillConfig
from allmem.distill import distillation as distillation_module
from allmem.distill.arguments import checkpoint_layers
from allmem.distill.rows import counted
from allmem.distill.segments import unpack
from allmem.distill.sizes import Sizes
from allmem.models import modeling
from tests.distill.tiny import C, S, T, W, make_batch, make_model, make_packed, make_text

SIZES = Sizes(W, S, C)


def packed() -> dict[str, Tensor]:
    batch = make_packed()
    return {**batch, "labels": counted(batch["labels"], batch["position_ids"], W)}


def gradients(
    batch: dict[str, Tensor], sizes: Sizes = SIZES, **settings: Any
) -> tuple[float, dict[str, Tensor]]:
    model = make_model()
    model.freeze_base()
    config = DistillConfig(steps=1, **settings)
    distillation = Distillation(model, config)
    if config.checkpoint_layers:
        distillation.train()
        checkpoint_layers(model)
    total, _ = distillation(**batch, sizes=sizes)
    total.backward()
    found = {}
    for name, parameter in model.memory_parameters().items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return float(total.detach()), found


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, Any]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-9)
    for name, gradient in one[1].items():
        # Llama's norms round to fp32, so sums in another order differ by that.
        assert (gradient - other[1][name]).norm() < 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("segment", [1, 4, C, 13, T - 1, T, 1000])
def test_the_gradient_is_the_whole_one(segment: int) -> None:
    batch, _ = make_batch(make_text(2 * T).view(2, T))
    batch["labels"] = counted(batch["labels"], batch["position_ids"], W)
    assert_same(gradients(batch), gradients(batch, segment=segment))


@pytest.mark.parametrize("segment", [7, 64])
@pytest.mark.parametrize("sizes", [SIZES, Sizes(7, 0, 3)], ids=["own", "drawn"])
def test_packed_documents_too(segment: int, sizes: Sizes) -> None:
    assert_same(gradients(packed(), sizes), gradients(packed(), sizes, segment=segment))


def test_layer_checkpointing_goes_with_it() -> None:
    assert_same(gradients(packed()), gradients(packed(), segment=7, checkpoint_layers=True))


def test_truncating_cuts_the_gradient_and_not_the_loss() -> None:
    loss, whole = gradients(packed(), segment=7)
    cut_loss, cut = gradients(packed(), segment=7, truncate=True)
    assert cut_loss == pytest.approx(loss, rel=1e-12)
    name = next(name for name in whole if name.endswith("initial.down"))
    assert not torch.allclose(whole[name], cut[name], rtol=1e-3)


def test_weights_and_other_divergences_go_with_it() -> None:
    settings: dict[str, Any] = {"disagreement": 0.2}
    assert_same(gradients(packed(), **settings), gradients(packed(), segment=9, **settings))
    plain, _ = gradients(packed())
    weighted, _ = gradients(packed(), **settings)
    assert plain != weighted


@pytest.mark.parametrize("settings", [{}, {"segment": 9}, {"disagreement": 0.2}])
def test_a_teacher_on_a_stream_of_its_own_changes_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for a stream works when it is waited for: as late as can be."""
    waited: list[Any] = []

    def aside(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
        def joined() -> Any:
            if not waited:
                waited.append(work())
            return waited[0]

        return joined

    expected = gradients(packed(), **settings)
    monkeypatch.setattr(distillation_module, "has_streams", lambda device: True)
    monkeypatch.setattr(distillation_module, "begun_aside", aside)
    assert_same(expected, gradients(packed(), overlap_teacher=True, **settings))
    assert waited


def test_a_cpu_has_no_streams() -> None:
    with pytest.raises(AllMemError, match=r"overlap_teacher = true needs a GPU, .* on cpu"):
        gradients(packed(), overlap_teacher=True)
    with pytest.raises(AllMemError, match="overlap_teacher = true does not go with fsdp"):
        DistillConfig(steps=1, overlap_teacher=True, fsdp=True)


@pytest.mark.gpu
def test_on_a_gpu_a_teacher_on_a_stream_of_its_own_changes_nothing() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    found = []
    for overlapped in (False, True):
        model = make_model().to("cuda")
        model.freeze_base()
        distillation = Distillation(model, DistillConfig(steps=1, overlap_teacher=overlapped))
        total, _ = distillation(**{n: t.cuda() for n, t in packed().items()}, sizes=SIZES)
        total.backward()
        found.append([p.grad for p in model.memory_parameters().values()])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()


def test_the_activations_of_one_segment_are_kept_at_a_time() -> None:
    def kept(length: int, segment: int | None) -> int:
        """Bytes that the forward pass keeps for the backward pass."""
        model = make_model()
        model.freeze_base()
        batch, _ = make_batch(make_text(length)[None])
        batch["labels"] = counted(batch["labels"], batch["position_ids"], W)
        total = 0
        seen = {p.data_ptr() for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = Distillation(model, DistillConfig(steps=1, segment=segment))(
                **batch, sizes=SIZES
            )
        assert loss.requires_grad
        return total

    # Whole rows grow by what their tokens need, segments by a state each.
    whole = (kept(320, None) - kept(160, None)) / 160
    state = sum(s.nbytes for s in make_model().init_states(1, torch.device("cpu")))
    per_segment = (kept(320, 40) - kept(160, 40)) / 4
    assert per_segment < 2 * state
    assert per_segment / 40 < whole / 5


def test_the_forward_pass_reads_every_segment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.freeze_base()
    batch, _ = make_batch(make_text(2 * T).view(2, T))
    read = type(model).hidden_states
    calls = 0

    def counting(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += not kwargs.get("full_attention")
        return read(self, *args, **kwargs)

    distillation = Distillation(model, DistillConfig(steps=1, segment=10))
    monkeypatch.setattr(type(model), "hidden_states", counting)
    total, _ = distillation(**batch, sizes=SIZES)
    assert calls == -(-T // 10)
    total.backward()
    assert calls == 2 * -(-T // 10)


def test_nothing_of_a_step_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    class Call(modeling.Call):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(modeling, "Call", Call)
    model = make_model()
    model.freeze_base()
    batch, _ = make_batch(make_text(2 * T).view(2, T))
    distillation = Distillation(model, DistillConfig(steps=1, segment=10)).train()
    checkpoint_layers(model)
    total, _ = distillation(**batch, sizes=SIZES)
    total.backward()
    del total
    gc.collect()
    assert made
    assert not any(call() is not None for call in made)


def test_documents_without_a_learned_token_are_left_out() -> None:
    batch = packed()
    rows = unpack(batch)
    learned = rows["labels"] >= 0
    assert bool(learned.any(1).all())
    assert int(learned.sum()) == int((batch["labels"] >= 0).sum())
    # Four and two documents, of which three reach beyond the window with something to learn.
    lengths = rows["attention_mask"].sum(1).tolist()
    assert set(lengths) <= {17, 30, 13, 25, 36}
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert len(unpack(nothing)["input_ids"]) == 1
    total, _ = Distillation(make_model(), DistillConfig(steps=1, segment=8))(**nothing, sizes=SIZES)
    assert float(total.detach()) == 0
