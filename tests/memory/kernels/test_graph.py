"""On a GPU: a token captured in a CUDA graph with a static state, and replayed."""

from __future__ import annotations

import pytest
import torch

from allmem.config import MemoryConfig
from allmem.memory.inner_loop import network_of
from allmem.memory.kernels import decode_step, row_norms, write
from allmem.memory.state import MemoryState

R, H, D = 2, 8, 128


@pytest.mark.gpu
def test_a_replayed_token_is_that_of_separate_launches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    pytest.importorskip("triton", reason="triton is not installed")
    config = MemoryConfig(chunk=3, heads=H, head_dim=D, width=D)
    network = network_of(config)
    initial = {name: torch.randn(H, D, D, device="cuda") * D**-0.5 for name in config.matrices}
    targets = row_norms({name: initial[name] for name in config.norm_matrices})
    texts = torch.randn(3, 7, R, H, 1, D, device="cuda", dtype=torch.bfloat16)
    q, k, v = (torch.zeros(R, H, 1, D, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    eta = torch.full((R, H, 1, 3), 0.01, device="cuda")
    closes = torch.zeros(R, dtype=torch.bool, device="cuda")

    def token(state: MemoryState) -> torch.Tensor:
        parts = (state.weights, targets, state.gradient)
        read = decode_step(network, q, k, v, eta, *parts)
        write(state, targets, config.chunk, config, closes, in_place=True)
        return read

    def run(state: MemoryState, one: object) -> list[torch.Tensor]:
        reads = []
        for t in range(texts.shape[1]):
            for into, text in zip((q, k, v), texts, strict=True):
                into.copy_(text[t])
            # The second row closes its chunk one token later than the first.
            closes.copy_(torch.tensor([t % 3 == 2, t % 3 == 0]))
            reads.append(one().clone())  # type: ignore[operator]
        return reads

    apart = MemoryState.begin(initial, R, config.momentum)
    want = run(apart, lambda: token(apart))

    static = MemoryState.begin(initial, R, config.momentum)
    fresh = static.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        read = token(static)
    for name, tensor in static.tensors().items():
        tensor.copy_(fresh.tensors()[name])

    def replay() -> torch.Tensor:
        graph.replay()
        return read

    got = run(static, replay)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    for name, tensor in static.tensors().items():
        assert torch.equal(tensor, apart.tensors()[name]), name
