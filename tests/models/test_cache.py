"""The cache as a value: constant size, exact copies, files, and no other model's past.

A saved state is compared bit for bit, also in a new process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem import AllMemError, WindowConfig
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import (
    SHAPE,
    C,
    S,
    W,
    assert_close,
    base_model,
    logits,
    logits_in_calls,
    randomise_memory,
    read,
    text,
    tiny_model,
)


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model(request: pytest.FixtureRequest) -> AllMemForCausalLM:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def one_model() -> AllMemForCausalLM:
    return tiny_model()


def test_its_size_is_constant_and_the_closed_form(model: AllMemForCausalLM) -> None:
    cache = AllMemCache(model.config)
    assert cache.nbytes == 0
    expected = sum(mixed.state_bytes(1, torch.float32) for mixed in model.mixers())
    for length in (1, C, S + W, 1, 50):
        logits(model, text(3, length), past_key_values=cache)
        assert cache.nbytes == 3 * expected
    assert cache.nbytes == sum(t.numel() * t.element_size() for t in cache.tensors().values())
    assert "3 sequences" in repr(cache)


def test_it_keeps_no_more_than_it_says(model: AllMemForCausalLM) -> None:
    """A view would keep all that it was cut from."""
    cache = AllMemCache(model.config)
    with torch.no_grad():
        logits(model, text(2, 70), past_key_values=cache)
    storages = [tensor.untyped_storage() for tensor in cache.tensors().values()]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(held.values()) == cache.nbytes


def test_its_size_under_another_window(one_model: AllMemForCausalLM) -> None:
    small = AllMemCache(one_model.config, window=WindowConfig(W - 2, 1))
    large = AllMemCache(one_model.config)
    for cache in (small, large):
        logits(one_model, text(1, 5), past_key_values=cache)
    heads, size = SHAPE["num_key_value_heads"], 16
    # Four slots fewer (S + W), keys and values, in two layers, four bytes a number.
    assert large.nbytes - small.nbytes == 2 * 2 * 4 * heads * size * 4


# One token after the first chunk closed, with and without an open chunk, around the ring's turn.
LENGTHS = [1, C, C + 1, S + W, S + W + 1, 3 * W + 2]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_saved_and_loaded_cache_continues_to_the_same_bits(
    model: AllMemForCausalLM, tmp_path: Path, length: int
) -> None:
    cache = read(model, text(2, length))
    cache.save(tmp_path / "past.safetensors", model, note={"title": "A text"})
    loaded = AllMemCache.load(tmp_path / "past.safetensors", model)
    assert loaded.nbytes == cache.nbytes
    assert loaded.get_seq_length() == length
    ids = text(2, 2 * C, seed=2)
    assert torch.equal(
        logits(model, ids, past_key_values=loaded), logits(model, ids, past_key_values=cache)
    )


def test_a_file_keeps_rows_of_unequal_length(one_model: AllMemForCausalLM, tmp_path: Path) -> None:
    ids, mask = text(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    cache = read(one_model, ids, attention_mask=mask)
    cache.save(tmp_path / "past", one_model)
    loaded = AllMemCache.load(tmp_path / "past", one_model)
    later = text(2, 9, seed=1)
    assert torch.equal(
        logits(one_model, later, past_key_values=loaded),
        logits(one_model, later, past_key_values=cache),
    )


def test_a_file_keeps_the_window_and_chunk_it_was_read_with(
    one_model: AllMemForCausalLM, tmp_path: Path
) -> None:
    cache = AllMemCache(one_model.config, window=WindowConfig(8, 2), chunk=4)
    logits(one_model, text(1, 30), past_key_values=cache)
    cache.save(tmp_path / "past", one_model)
    loaded = AllMemCache.load(tmp_path / "past", one_model)
    assert (loaded.window, loaded.chunk) == (WindowConfig(8, 2), 4)
    later = text(1, 30, seed=1)
    assert torch.equal(
        logits(one_model, later, past_key_values=loaded),
        logits(one_model, later, past_key_values=cache),
    )


CONTINUE = """
import sys
import torch
torch.set_num_threads(1)
import allmem
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder + "/model").eval()
cache = allmem.AllMemCache.load(folder + "/past", model)
given = torch.load(folder + "/given.pt")
with torch.no_grad():
    found = model(given["ids"], past_key_values=cache).logits
assert torch.equal(found, given["logits"]), (found - given["logits"]).abs().max()
"""


def test_a_new_process_continues_to_the_same_bits(
    one_model: AllMemForCausalLM, tmp_path: Path
) -> None:
    cache = read(one_model, text(2, 3 * W + 2))
    cache.save(tmp_path / "past", one_model)
    one_model.save_pretrained(tmp_path / "model")
    ids = text(2, 2 * C, seed=2)
    expected = logits(one_model, ids, past_key_values=cache)
    torch.save({"ids": ids, "logits": expected}, tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_same_calls_give_the_same_bits(one_model: AllMemForCausalLM) -> None:
    def run() -> Tensor:
        return logits_in_calls(one_model, text(2, 40).split([9, 1, 1, 29], 1))

    assert torch.equal(run(), run())


def test_forks_have_one_past_and_two_futures(model: AllMemForCausalLM) -> None:
    cache = read(model, text(2, 2 * W + 1))
    twin = cache.fork()
    left, right, last = text(2, W, seed=3), text(2, W + 4, seed=4), text(2, 7, seed=5)
    logits(model, left, past_key_values=twin)
    assert cache.get_seq_length() == 2 * W + 1
    found = logits_in_calls(model, [right, last], cache)
    fresh = logits_in_calls(model, [text(2, 2 * W + 1), right, last])
    assert torch.equal(found, fresh[:, -found.shape[1] :])
    continued = logits(model, last, past_key_values=twin)
    expected = logits_in_calls(model, [text(2, 2 * W + 1), left, last])[:, -7:]
    assert torch.equal(continued, expected)


def test_an_empty_cache_can_be_forked(one_model: AllMemForCausalLM) -> None:
    twin = AllMemCache(one_model.config).fork()
    assert torch.equal(
        logits(one_model, text(1, 9), past_key_values=twin), logits(one_model, text(1, 9))
    )


def test_reset_restores_the_learned_start(model: AllMemForCausalLM) -> None:
    cache = read(model, text(2, 3 * W))
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length(), cache.is_initialized) == (0, 0, False)
    # Another batch size too: nothing of the past is left.
    ids = text(3, 2 * W)
    assert torch.equal(logits(model, ids, past_key_values=cache), logits(model, ids))


def test_reading_does_not_change_the_learned_start(one_model: AllMemForCausalLM) -> None:
    before = {n: p.detach().clone() for n, p in one_model.named_parameters()}
    read(one_model, text(2, 3 * W))
    assert all(torch.equal(p, before[n]) for n, p in one_model.named_parameters())


def test_nothing_can_be_cropped(one_model: AllMemForCausalLM) -> None:
    cache = read(one_model, text(1, 9))
    cache.crop(0)
    for tokens in (1, -1):
        with pytest.raises(AllMemError, match="cannot forget its last tokens"):
            cache.crop(tokens)


def test_gradients_flow_through_a_cache_until_detached() -> None:
    """Two segments of a long sample: with and without the gradients of the first."""
    model = tiny_model(dtype=torch.float64)
    ids = text(1, 30)

    def gradient(detach: bool, split: bool) -> Tensor:
        model.zero_grad()
        cache = AllMemCache(model.config)
        if split:
            model(ids[:, :17], past_key_values=cache, use_cache=True)
            if detach:
                cache.detach()
            out = model(ids[:, 17:], past_key_values=cache, use_cache=True).logits
        else:
            out = model(ids, use_cache=False).logits[:, 17:]
        out.square().sum().backward()
        name = "layers.0.memory.unit.initial.down"
        grad = model.memory_parameters()[name].grad
        return torch.zeros(1) if grad is None else grad.clone()

    assert_close(gradient(False, True), gradient(False, False), 1e-8)
    assert gradient(False, True).abs().sum() > 0
    # Behind the cut only the norms that rows are scaled to lead back to the start.
    assert gradient(True, True).abs().sum() == 0


def test_states_from_inference_mode_can_be_read_on(one_model: AllMemForCausalLM) -> None:
    ids = text(1, 30)
    with torch.inference_mode():
        cache = one_model(ids[:, :17], use_cache=True).past_key_values
    assert_close(
        logits(one_model, ids[:, 17:], past_key_values=cache), logits(one_model, ids)[:, 17:], 1e-5
    )


OTHERS: dict[str, dict[str, Any]] = {
    "window": {"window": W + 1},
    "sinks": {"sinks": S - 1},
    "chunk": {"chunk": C - 1},
    "layers": {"mixers": "allmem,window"},
    "memory": {"memory": {"width": 8}},
    "base": {"name": "llama"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_cache_of_another_configuration_is_refused(
    one_model: AllMemForCausalLM, tmp_path: Path, case: str
) -> None:
    other = tiny_model(**OTHERS[case])
    cache = read(one_model, text(1, 9))
    with pytest.raises(AllMemError, match="another model or configuration"):
        logits(other, text(1, 3), past_key_values=cache)
    cache.save(tmp_path / "past", one_model)
    with pytest.raises(AllMemError, match="another configuration"):
        AllMemCache.load(tmp_path / "past", other)


def test_a_file_from_other_weights_is_refused(one_model: AllMemForCausalLM, tmp_path: Path) -> None:
    read(one_model, text(1, 9)).save(tmp_path / "past", one_model)
    with pytest.raises(AllMemError, match="other weights"):
        AllMemCache.load(tmp_path / "past", tiny_model(seed=1))
    trained = tiny_model()
    randomise_memory(trained, seed=9, std=0.01)
    with pytest.raises(AllMemError, match="other weights"):
        AllMemCache.load(tmp_path / "past", trained)


def test_a_file_of_another_dtype_is_refused(one_model: AllMemForCausalLM, tmp_path: Path) -> None:
    read(one_model, text(1, 9)).save(tmp_path / "past", one_model)
    with pytest.raises(AllMemError, match=r"torch.float32.* this one runs in torch.bfloat16"):
        AllMemCache.load(tmp_path / "past", tiny_model(dtype=torch.bfloat16))


def test_an_empty_cache_is_not_saved(one_model: AllMemForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="read something"):
        AllMemCache(one_model.config).save(tmp_path / "past", one_model)


def test_a_cache_in_bf16_keeps_its_memory_in_fp32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    for name, tensor in read(model, text(1, 20)).tensors().items():
        wide = ".memory.memory." in name
        assert tensor.dtype == (torch.float32 if wide else torch.bfloat16), name


def test_a_base_model_is_not_changed_by_its_twin() -> None:
    """Two models from one configuration object: converting one leaves the other as it was."""
    base = base_model()
    twin = type(base)(base.config).eval()
    twin.load_state_dict(base.state_dict())
    expected = logits(twin, text(1, 20))
    import allmem

    allmem.convert(base, window=W, sinks=S, chunk=C)
    assert torch.equal(logits(twin, text(1, 20)), expected)
