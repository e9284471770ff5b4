"""Which calls the kernels say they cannot compute, and that asking costs no import of triton."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from allmem import kernels as asking
from allmem.memory import kernels
from allmem.memory.kernels import tiles
from allmem.memory.kernels.tiles import step_tile
from allmem.memory.network import MemoryNetwork

BF16, FP32 = torch.bfloat16, torch.float32
H100, A100, L40S = 232_448, 166_912, 101_376
"""Bytes of shared memory that a program may have."""


def sizes(d: int, h: int) -> dict[str, torch.Tensor]:
    shapes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    return {name: torch.empty(1, 2, *size) for name, size in shapes.items()}


def on_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shared: int = H100, capability: int = 9
) -> Any:
    """A stand-in for queries on a GPU."""
    found = {"major": capability, "minor": 0, "shared_memory_per_block_optin": shared}
    monkeypatch.setattr(asking, "_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**found)
    )
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype, requires_grad=False)


@pytest.mark.parametrize("d", [16, 48, 128, 192, 256])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
def test_an_h100_runs_every_head(
    d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = on_gpu(monkeypatch, dtype)
    assert kernels.cannot_run(MemoryNetwork(), q, sizes(d, 640)) is None


def test_what_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MemoryNetwork()
    q = on_gpu(monkeypatch, BF16)
    assert "d = 320" in (kernels.cannot_run(network, q, sizes(320, 64)) or "")
    assert "h = 8192" in (kernels.cannot_run(network, q, sizes(64, 8192)) or "")
    assert "float64" in (
        kernels.cannot_run(network, on_gpu(monkeypatch, torch.float64), sizes(64, 64)) or ""
    )
    assert kernels.cannot_run(network, on_gpu(monkeypatch, BF16, L40S), sizes(128, 128)) is None
    reason = kernels.cannot_run(network, on_gpu(monkeypatch, BF16, A100), sizes(256, 256))
    assert reason is not None
    assert f"need {step_tile(256, BF16).shared} bytes of shared memory, of {A100}" in reason


def test_other_devices_and_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MemoryNetwork()
    assert "7.0" in (
        kernels.cannot_run(network, on_gpu(monkeypatch, BF16, capability=7), sizes(64, 64)) or ""
    )
    q = torch.empty(1, 2, 4, 64, requires_grad=True)
    assert "backward" in (kernels.cannot_run(network, q, sizes(64, 64)) or "")
    with torch.no_grad():
        assert "cpu devices" in (kernels.cannot_run(network, q, sizes(64, 64)) or "")
        turned = {name: w.mT for name, w in sizes(64, 64).items()}
        assert "contiguous" in (kernels.cannot_run(network, q, turned) or "")
        linear = MemoryNetwork(swiglu=False)
        assert "linear" in (kernels.cannot_run(linear, q, {"down": torch.empty(1, 2, 8, 4)}) or "")


def test_without_triton_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_installed", lambda: False)
    q = torch.empty(1, 2, 4, 64)
    assert "pip install" in (kernels.cannot_run(MemoryNetwork(), q, sizes(64, 64)) or "")


def test_importing_and_asking_need_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    package = kernels.__name__
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    # An import of it now fails, as where it is not installed.
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(asking, "_installed", asking._installed.__wrapped__)
    again = importlib.import_module(package)
    assert again is not kernels
    assert again.cannot_run(MemoryNetwork(), torch.empty(1, 2, 4, 64), sizes(64, 64)) is not None


@pytest.mark.parametrize("dtype", [BF16, FP32, torch.float64], ids=["bf16", "fp32", "fp64"])
def test_tiles_are_powers_of_two_of_sixteen_at_least(dtype: torch.dtype) -> None:
    for d in range(1, tiles.LARGEST_HEAD + 1):
        tile = step_tile(d, dtype)
        assert tile.head >= d
        for size in (tile.tokens, tile.head, tile.width):
            assert size >= 16
            assert size & (size - 1) == 0
