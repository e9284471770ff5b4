"""Memory of a long call, measured by the kernel in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 2**20

SCRIPT = """
import resource, sys, torch
from allmem.attention import window_attention
from allmem.config import WindowConfig
from allmem.layout import Layout

torch.set_num_threads(1)
N, backward = int(sys.argv[1]), sys.argv[2] == "backward"
heads, window = 4, WindowConfig(512, 16)
q, q_sink = (torch.randn(1, heads, N, 16) for _ in range(2))
k, v = (torch.randn(1, 1, N, 16) for _ in range(2))
inputs = [x.requires_grad_(backward) for x in (q, q_sink, k, v)]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def call(n):
    layout = Layout.dense(0, 1, n, q.device)
    cut = [x[:, :, :n] for x in inputs]
    with torch.set_grad_enabled(backward):
        out, _ = window_attention(*cut, None, layout, window, scale=0.25)
    if backward:
        torch.autograd.grad(out, inputs, torch.ones_like(out))

call(1024)
before = peak()
call(N)
print(peak() - before)
"""


def growth(tokens: int, mode: str) -> int:
    """Bytes by which a call of so many tokens raises the peak of a process with its inputs."""
    command = [sys.executable, "-c", SCRIPT, str(tokens), mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")


@linux
def test_forward_needs_its_output_and_little_else() -> None:
    # All else that a call of 64k tokens takes is what one block takes, as in a call of 8k: 1.2
    # times that, and 2 MiB of the allocator's. The weights of all blocks would be 640 MiB.
    def beyond_output(tokens: int) -> int:
        return growth(tokens, "forward") - tokens * 4 * 16 * 4

    assert beyond_output(65536) < 1.2 * max(beyond_output(8192), 0) + 2 * MIB


@linux
def test_backward_needs_what_has_the_size_of_its_inputs() -> None:
    # The output and its gradient, and gradients of q, q_sink (4 heads), k and v (1 head).
    tokens = 16384
    linear = tokens * (4 * 4 + 2 * 1) * 16 * 4
    assert growth(tokens, "backward") < 1.2 * linear + 4 * MIB
