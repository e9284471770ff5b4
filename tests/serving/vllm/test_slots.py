"""Every memory's state fits into vLLM's slots, and any schedule of steps leaves in them what one
call leaves; without an engine around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from allmem.models.flat import read_flat
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving import vllm as plugin
from allmem.serving.vllm import step
from tests.models.tiny import C, W, assert_close, logits, text, tiny_model
from tests.serving.vllm.serving import calm_model

pytestmark = pytest.mark.vllm

MIXERS: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            "ahn_deltanet",
            "ahn_gated_deltanet",
            "ahn_mamba2",
            "deltanet",
            "gated_deltanet",
            "gla",
            "infini",
            "kda",
            "lizard",
            "mamba2",
            "mesa",
            "multiscale",
            "routed",
            "several",
            "window",
        )
    },
    "allmem": {"chunk": C},
    "camelot": {},
    "compressive": {},
    "eviction": {"interval": 3, "priority": 2},
    "lact": {"chunk": C},
    "ladder": {"interval": 2},
    "titans": {"mini_batch": 4},
    "ttt_linear": {"mini_batch": 4},
    "ttt_mlp": {"mini_batch": 4},
}
LENGTHS = (5 * W + 1, 1, C, 3 * W, 2 * W + 3)
SLOTS = (6, 2, 3, 5, 4)


def model_of(mixer: str) -> AllMemForCausalLM:
    own = {} if mixer in ("allmem", "window") else {mixer: MIXERS[mixer]}
    return calm_model(mixers=mixer, mixer_options=own)


@pytest.fixture(params=[False, True], ids=["in-place", "together"])
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "reads_in_place", lambda device: not request.param)


@pytest.mark.parametrize("mixer", MIXERS)
def test_any_schedule_gives_what_one_call_gives(mixer: str, grouping: None) -> None:
    model = model_of(mixer)
    texts = [text(1, length, seed=i)[0] for i, length in enumerate(LENGTHS)]
    for ids, found in zip(texts, read_in_steps(model, texts), strict=True):
        assert_close(found, logits(model, ids[None])[0], 1e-4)


@torch.no_grad()
def read_in_steps(model: AllMemForCausalLM, texts: list[Tensor]) -> list[Tensor]:
    """Logits [T, V] of each text; pieces of every length, in slots that held something before."""
    from allmem.serving.vllm.slots import StateSlots

    plugin.register()
    slots = StateSlots(model.init_states(1, model.device))
    pages = torch.randint(-128, 127, (max(SLOTS) + 1, 1, 1, slots.nbytes), dtype=torch.int8)
    slots.bind_kv_cache(pages)
    generator = torch.Generator().manual_seed(1)
    read, found = [0] * len(texts), [[] for _ in texts]
    while any(r < len(ids) for r, ids in zip(read, texts, strict=True)):
        rows = [i for i, ids in enumerate(texts) if read[i] < len(ids)]
        most = torch.tensor([len(texts[i]) - read[i] for i in rows])
        drawn = torch.randint(1, W + 3, (len(rows),), generator=generator)
        some = torch.rand(len(rows), generator=generator) < 0.5
        lengths = torch.where(some, 1, drawn).minimum(most)
        first = lengths.cumsum(0) - lengths
        now = step.Step(first, lengths, torch.tensor(read)[rows], torch.tensor(SLOTS)[rows])
        for slot in now.beginning:
            slots.begin(slot)
        pieces = [texts[i][read[i] : read[i] + n] for i, n in zip(rows, lengths, strict=True)]
        groups = now.groups(model.device, None, None)
        all_slots = torch.arange(int(lengths.sum()))
        result = read_flat(model, torch.cat(pieces), groups, slots, all_slots)
        for i, part in zip(rows, result.split(lengths.tolist()), strict=True):
            found[i].append(part)
            read[i] += len(part)
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_is_as_large_as_the_state_and_its_tensors_are_dense(dtype: torch.dtype) -> None:
    from allmem.serving.vllm.slots import StateSlots

    # Its sums of decays are no multiple of 16 bytes.
    states = (model := tiny_model("gemma3", dtype=dtype)).init_states(1, model.device)
    slots = StateSlots(states)
    assert slots.nbytes == sum(state.nbytes for state in states)
    slots.bind_kv_cache(torch.zeros(7, 1, 1, slots.nbytes, dtype=torch.int8))
    assert all(tensor.is_contiguous() for tensor in slots.kv_cache)
    assert all(tensor[1].data_ptr() % tensor.element_size() == 0 for tensor in slots.kv_cache)
