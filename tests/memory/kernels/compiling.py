"""Compiles every kernel for a GPU that is not here, by calling the library with launches taken out,
and prints what each of them needs: one line of JSON for each.

A process of its own, since it puts a GPU that does not exist in the place of triton's driver:
``python -m tests.memory.kernels.compiling 90``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from allmem.attention import RingState
from allmem.attention import kernels as attention
from allmem.config import MemoryConfig, WindowConfig
from allmem.memory.kernels import decode_step, row_norms, step, write
from allmem.memory.kernels.tiles import step_tile
from allmem.memory.network import MemoryNetwork
from allmem.memory.state import MemoryState
from allmem.token_layout import TokenLayout

H100 = 232_448
"""Bytes of shared memory that a program may have."""
MATRICES = ("gate", "up", "down")
STEPS = [(128, 128, "bfloat16"), (192, 192, "bfloat16"), (256, 640, "bfloat16")]
STEPS += [(16, 16, "bfloat16"), (48, 96, "float32"), (128, 128, "float32"), (256, 256, "float32")]
DECODES = [(128, 128, 1, 8), (256, 1024, 8, 2), (16, 16, 1, 1)]
ATTENTIONS = [(16, 8, 128, 4096, "bfloat16"), (64, 2, 256, 1024, "bfloat16")]
ATTENTIONS += [(4, 4, 64, 60, "bfloat16"), (16, 8, 128, 1024, "float32")]
ATTENTIONS += [(8, 2, 64, 32768, "float32")]


class Absent:
    """Triton's driver for a GPU that is only compiled for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def spilled(ptx: str, capability: int) -> int:
    """Bytes that the registers of a thread do not hold."""
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", "-arch", architecture]
        command += [file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))


def watch(capability: int) -> None:
    launch = JITFunction.run
    seen: set[str] = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            ptx = kernel.asm["ptx"]
            found = {
                "kernel": self.fn.__name__,
                "shared": kernel.metadata.shared,
                "spilled": spilled(ptx, capability),
                "tensor_cores": "mma" in ptx,
                **CASE,
            }
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        return kernel

    JITFunction.run = compile_only


CASE: dict[str, Any] = {}
"""What is compiled now."""


def tokens(R: int, N: int, H: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(R, N, H, d, dtype=dtype).transpose(1, 2)


def weights(R: int, H: int, d: int, h: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    return {name: torch.zeros(R, H, *shape, dtype=dtype) for name, shape in shapes.items()}


def norms(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w[..., :1].contiguous() for name, w in matrices.items()}


@torch.no_grad()
def attend(Q: int, K: int, E: int, W: int, dtype: torch.dtype) -> None:
    """One token of two rows, with sinks and in a pool, and without either."""
    for window, far in ((WindowConfig(W, 4), True), (WindowConfig(W, 0), False)):
        pool = RingState.empty(3, K, E, E, window, dtype, torch.device("cpu"))
        q, k = tokens(2, 1, Q, E, dtype), tokens(2, 1, K, E, dtype)
        state = pool.rows_in_place(torch.tensor([2, 0])) if far else pool
        layout = TokenLayout.next_of(torch.tensor([5, 9000]))
        given = (q, q if far else None, k, k, state, layout, window)
        attention.window_attention(*given, scale=0.1)


def main(capability: int) -> None:
    driver.set_active(Absent(capability))
    watch(capability)
    for Q, K, E, W, kind in ATTENTIONS:
        CASE.update(case=f"attention {Q} {K} {E} {W} {kind}", limit=H100)
        attend(Q, K, E, W, getattr(torch, kind))
    for d, h, kind in STEPS:
        dtype = getattr(torch, kind)
        CASE.update(case=f"step {d} {h} {kind}", limit=step_tile(d, dtype).shared)
        given = [tokens(1, 2048, 8, size, dtype) for size in (d, d, d, 3)]
        F = weights(1, 8, d, h, dtype)
        step(MemoryNetwork(), *given, F, norms(F))
        if d == h == 128:
            step(MemoryNetwork(dot_loss=True), *given, F)
            step(MemoryNetwork(swiglu=False), *given, {"down": F["down"]})
            # One of everything: triton makes constants of such numbers.
            step(MemoryNetwork(), *(t[:, :1, :1] for t in given), weights(1, 1, d, h, dtype))
    for d, h, N, H in DECODES:
        CASE.update(case=f"decode {d} {h} {N}", limit=48 * 1024)
        given = [tokens(1, N, H, size, torch.bfloat16) for size in (d, d, d, 3)]
        F, G = weights(1, H, d, h, torch.float32), weights(1, H, d, h, torch.float32)
        targets = {name: norm[0] for name, norm in norms(F).items()}
        decode_step(MemoryNetwork(), *given, F, targets, G)
        decode_step(MemoryNetwork(), *given, F, {}, G)
        decode_step(MemoryNetwork(), *given, F, targets, G, torch.tensor([0]))
        if d == h:
            linear = MemoryNetwork(swiglu=False)
            only = {name: {"down": t["down"]} for name, t in (("F", F), ("t", targets), ("G", G))}
            decode_step(linear, *given, only["F"], only["t"], only["G"])
    for d, h, H in ((128, 128, 8), (256, 4096, 1)):
        CASE.update(case=f"write {d} {h}", limit=48 * 1024)
        F = {name: w[0] for name, w in weights(1, H, d, h, torch.float32).items()}
        state, targets = MemoryState.begin(F, 1, momentum=True), row_norms(F)
        write(state, targets, 7, MemoryConfig(norm_matrices=MATRICES), torch.ones(1) > 0)
        config = MemoryConfig(norm="post_update", norm_matrices=MATRICES, clip=None)
        write(state, targets, 7, config, in_place=True)
        write(state.rows_in_place(torch.tensor([0])), targets, 7, config, in_place=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
