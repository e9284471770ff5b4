"""Adapter and cache files: what was written is what is read, and nothing else is taken for it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import allmem
from allmem import AllMemError, files
from allmem.config import WindowConfig
from allmem.models.adapter import find_adapter, load_adapter, save_adapter, shipped_adapters
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import C, S, W, assert_close, base_model, logits, read, text, tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "shared": {"memory": {"projections": "shared", "rank": 3}},
    "mixed-layers": {"mixers": "window,allmem", "memory": {"width": 8, "conv": 0}},
    "linear": {"memory": {"network": "linear"}},
}


@pytest.fixture(scope="module")
def model() -> AllMemForCausalLM:
    return tiny_model()


@pytest.fixture
def adapter(model: AllMemForCausalLM, tmp_path: Path) -> Path:
    save_adapter(model, tmp_path / "a.safetensors", note={"steps": 3})
    return tmp_path / "a.safetensors"


@pytest.fixture
def past(model: AllMemForCausalLM, tmp_path: Path) -> Path:
    read(model, text(1, 30)).save(tmp_path / "past.safetensors", model)
    return tmp_path / "past.safetensors"


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3"])
def test_an_adapter_on_a_fresh_base_is_the_model_again(
    name: str, case: str, tmp_path: Path
) -> None:
    model = tiny_model(name, **OPTIONS[case])
    save_adapter(model, tmp_path / "a")
    loaded = load_adapter(base_model(name), tmp_path / "a")
    ids = text(2, 3 * W)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.cache_key == model.cache_key
    assert loaded.fingerprint() == model.fingerprint()


def test_an_adapter_can_be_loaded_into_a_converted_model(
    model: AllMemForCausalLM, adapter: Path
) -> None:
    fresh = allmem.convert(base_model(), window=W, sinks=S, chunk=C)
    loaded = load_adapter(fresh, adapter)
    assert loaded is fresh
    assert torch.equal(logits(loaded, text(1, 30)), logits(model, text(1, 30)))


def test_an_adapter_may_be_loaded_with_another_window(
    model: AllMemForCausalLM, adapter: Path
) -> None:
    loaded = load_adapter(base_model(), adapter, window=W + 5)
    assert loaded.config.window == W + 5
    cache = AllMemCache(model.config, WindowConfig(W + 5, S))
    wide = logits(model, text(1, 40), past_key_values=cache)
    assert_close(logits(loaded, text(1, 40)), wide, 1e-5)
    with pytest.raises(AllMemError, match="converted already"):
        load_adapter(model, adapter, window=W + 5)
    with pytest.raises(AllMemError, match="window"):
        load_adapter(base_model(), adapter, window=C - 1)


def test_an_adapter_is_found_by_file_folder_and_name(
    model: AllMemForCausalLM, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(AllMemError, match="run holds no adapter"):
        find_adapter(folder)
    save_adapter(model, folder / "adapter.safetensors")
    assert find_adapter(folder) == find_adapter(folder / "adapter.safetensors")
    loaded = load_adapter(base_model(), folder)
    for name, parameter in model.memory_parameters().items():
        assert loaded.memory_parameters()[name].equal(parameter)
    assert "smollm2" in shipped_adapters()
    for name in shipped_adapters():
        assert find_adapter(name).parent.name == name
    with pytest.raises(AllMemError, match=r"no file nowhere; those that come .* smollm2"):
        find_adapter("nowhere")


def test_a_file_of_the_user_goes_before_a_name(
    model: AllMemForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_adapter(model, "smollm2")
    assert find_adapter("smollm2") == Path("smollm2")


def test_an_adapter_may_be_older_than_an_option(
    model: AllMemForCausalLM, adapter: Path, tmp_path: Path
) -> None:
    weights, header = files.read_tensors(adapter, "adapter")
    del header["mixer_options"]["allmem"]["optimizer"]
    files.write_tensors(tmp_path / "older", "adapter", weights, header)
    loaded = load_adapter(base_model(), tmp_path / "older")
    assert torch.equal(logits(loaded, text(1, 30)), logits(model, text(1, 30)))
    header["mixer_options"]["allmem"]["optimizer"] = "muon"
    files.write_tensors(tmp_path / "other", "adapter", weights, header)
    with pytest.raises(AllMemError, match=r"'muon'.* the model has"):
        load_adapter(model, tmp_path / "other")


def test_an_adapter_can_be_loaded_on_a_saved_base(
    model: AllMemForCausalLM, adapter: Path, tmp_path: Path
) -> None:
    base_model().save_pretrained(tmp_path / "base")
    loaded = load_adapter(tmp_path / "base", adapter)
    assert torch.equal(logits(loaded, text(1, 30)), logits(model, text(1, 30)))


def test_an_adapter_serves_a_base_in_bf16(adapter: Path) -> None:
    loaded = load_adapter(base_model().to(torch.bfloat16), adapter)
    kept = {p.dtype for n, p in loaded.memory_parameters().items() if ".unit.initial." in n}
    assert loaded.dtype == torch.bfloat16
    assert kept == {torch.float32}


def test_an_adapter_holds_the_slow_weights_alone(model: AllMemForCausalLM, adapter: Path) -> None:
    weights, header = files.read_tensors(adapter, "adapter")
    assert set(weights) == set(model.memory_parameters())
    assert header["note"] == {"steps": 3}


def test_an_adapter_of_another_base_is_refused(adapter: Path) -> None:
    with pytest.raises(AllMemError, match=r"another base model.*other_base=True"):
        load_adapter(base_model(seed=1), adapter)


def test_other_weights_can_be_asked_for(adapter: Path) -> None:
    """As for the original of a quantised base."""
    loaded = load_adapter(base_model(seed=1), adapter, other_base=True)
    assert logits(loaded, text(1, 9)).isfinite().all()


def test_a_base_with_another_vocabulary_is_named(adapter: Path) -> None:
    with pytest.raises(AllMemError, match=r"vocabulary.*61.*67"):
        load_adapter(base_model(vocab_size=67), adapter)


def test_other_weights_must_have_the_same_sizes(adapter: Path) -> None:
    with pytest.raises(AllMemError, match=r"shape|another one|layers"):
        load_adapter(base_model(hidden_size=40), adapter, other_base=True)
    three = base_model(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(AllMemError, match=r"names 2 layers, .* the model's 3"):
        load_adapter(three, adapter, other_base=True)


def test_a_converted_model_of_another_layout_is_refused(adapter: Path) -> None:
    fresh = allmem.convert(base_model(), window=W, sinks=S, chunk=C, memory={"width": 8})
    with pytest.raises(AllMemError, match=r"was made for mixer_options.*width"):
        load_adapter(fresh, adapter)


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _change_the_header(path: Path) -> None:
    data = path.read_bytes()
    assert b"window" in data
    path.write_bytes(data.replace(b"window", b"windoe", 1))


def _cut_tensors(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text(json.dumps({"not": "a tensor"}))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped-byte": (_flip_a_byte, "altered"),
    "changed-header": (_change_the_header, "altered"),
    "cut-in-the-tensors": (_cut_tensors, "truncated"),
    "cut-in-the-header": (_cut_header, "truncated"),
    "empty": (_empty, "truncated"),
    "no-tensors-at-all": (_text, "truncated"),
    "missing": (Path.unlink, "there is no file"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_adapter_is_refused(adapter: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(adapter)
    with pytest.raises(AllMemError, match=message):
        load_adapter(base_model(), adapter)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_refused(model: AllMemForCausalLM, past: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(past)
    with pytest.raises(AllMemError, match=message):
        AllMemCache.load(past, model)


def test_one_kind_of_file_is_not_taken_for_another(
    model: AllMemForCausalLM, adapter: Path, past: Path
) -> None:
    with pytest.raises(AllMemError, match="holds a 'state', not a 'adapter'"):
        load_adapter(base_model(), past)
    with pytest.raises(AllMemError, match="holds a 'adapter', not a 'state'"):
        AllMemCache.load(adapter, model)


def test_a_safetensors_file_of_someone_else_is_refused(
    model: AllMemForCausalLM, tmp_path: Path
) -> None:
    base_model().save_pretrained(tmp_path)
    with pytest.raises(AllMemError, match="not a complete AllMem state file"):
        AllMemCache.load(tmp_path / "model.safetensors", model)


def test_a_folder_is_not_a_file(model: AllMemForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="there is no file"):
        AllMemCache.load(tmp_path, model)


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SAVERS: dict[str, Callable[[AllMemForCausalLM, Path], None]] = {
    "adapter": save_adapter,
    "state": lambda model, path: read(model, text(1, 9, seed=4)).save(path, model),
}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("stage", ["writing", "syncing", "renaming"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    model: AllMemForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stage: str,
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"the old one")
    with monkeypatch.context() as patch:
        if stage == "writing":
            patch.setattr(files, "save_file", _no_space)
        else:
            patch.setattr(os, {"syncing": "fsync", "renaming": "replace"}[stage], _no_space)
        with pytest.raises(AllMemError, match="No space left on device"):
            SAVERS[kind](model, target)
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", SAVERS)
def test_a_folder_that_does_not_exist_is_named(
    model: AllMemForCausalLM, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(AllMemError, match=r"cannot write .*nowhere.*choose another folder"):
        SAVERS[kind](model, tmp_path / "nowhere" / "file")


@pytest.mark.parametrize("kind", SAVERS)
def test_a_file_is_written_with_the_permissions_of_any_new_file(
    model: AllMemForCausalLM, tmp_path: Path, kind: str
) -> None:
    """Not with the narrow ones of a temporary file: an adapter is for sharing."""
    (tmp_path / "plain").touch()
    SAVERS[kind](model, tmp_path / "file")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "file")]
    assert modes[0] == modes[1]


def test_an_interruption_leaves_the_old_file(
    model: AllMemForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "file"
    target.write_bytes(b"the old one")
    monkeypatch.setattr(files, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(model, target)
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]
