"""A memory layer in tokens a second, beside layers that others wrote.

    python -m benchmarks.peers [--device cuda] [--chunks 512,64,16]

Ours is AllMem's whole memory: projections, convolutions, norms, inner loop, gate. Beside it, each
if it is installed and runs here, with the same hidden size, heads and head size, on the same random
tokens in one call:

- titans-pytorch's ``NeuralMemory`` with ``MemorySwiGluMLP`` of the same width and chunk;
- flash-linear-attention's ``GatedDeltaNet`` and ``Mamba2`` and mamba-ssm's ``Mamba2``, which have
  no chunk to choose and a state of another size.

``benchmarks/peers.sh`` makes an environment that has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.unit import MemoryUnit
from benchmarks.inner_loop import CASES, TINY, Sizes
from benchmarks.measure import add_options, record, rotating, timed
from benchmarks.targets import Finding, unmeasured

__all__ = ["PACKAGES", "layer_rows", "versions"]

Layer = Callable[[Tensor], Any]
PACKAGES = ("titans-pytorch", "flash-linear-attention", "fla-core", "mamba-ssm", "triton")
TITANS = "titans-pytorch"


def our_layer(sizes: Sizes, chunk: int, dtype: torch.dtype, device: torch.device) -> Layer:
    shape = {name: sizes[name] for name in ("heads", "head_dim", "width")}
    config = MemoryConfig(chunk=chunk, **shape)
    attention = AttentionWeights(sizes["queries"], sizes["heads"], 64)
    unit = MemoryUnit(sizes["hidden"], config.sized(sizes["hidden"], sizes["heads"]), attention)
    unit = unit.to(device, dtype)
    for part in (unit.eta, unit.beta, unit.initial):
        part.float()

    def read(x: Tensor) -> Any:
        layout = Layout.dense(0, len(x), x.shape[1], device)
        return unit(x, unit.begin(len(x), x.dtype), layout)

    return read


def titans(sizes: Sizes, chunk: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from titans_pytorch import MemorySwiGluMLP, NeuralMemory  # type: ignore[import-untyped]

    # Their network has two thirds of the factor as its width.
    factor = 1.5 * sizes["width"] / sizes["head_dim"]
    return NeuralMemory(
        dim=sizes["hidden"],
        heads=sizes["heads"],
        dim_head=sizes["head_dim"],
        chunk_size=chunk,
        batch_size=chunk,
        model=MemorySwiGluMLP(sizes["head_dim"], depth=1, expansion_factor=factor + 1e-6),
    ).to(device, dtype)


def delta_net(sizes: Sizes, chunk: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from fla.layers import GatedDeltaNet

    layer = GatedDeltaNet(
        hidden_size=sizes["hidden"],
        head_dim=sizes["head_dim"],
        num_heads=sizes["heads"],
        expand_v=1,
    )
    return layer.to(device, dtype)


def fla_mamba2(sizes: Sizes, chunk: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from fla.layers import Mamba2
    from fla.layers.mamba2 import is_fast_path_available

    if not is_fast_path_available:
        raise RuntimeError("its fast path needs mamba-ssm")
    layer = Mamba2(
        hidden_size=sizes["hidden"],
        num_heads=2 * sizes["hidden"] // sizes["head_dim"],
        head_dim=sizes["head_dim"],
        state_size=sizes["head_dim"],
    )
    return layer.to(device, dtype)


def mamba_ssm(sizes: Sizes, chunk: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from mamba_ssm import Mamba2  # type: ignore[import-not-found]

    layer = Mamba2(d_model=sizes["hidden"], d_state=sizes["head_dim"], headdim=sizes["head_dim"])
    return layer.to(device, dtype)


CHUNKED = {TITANS: titans}
OTHERS = {
    "fla GatedDeltaNet": delta_net,
    "fla Mamba2": fla_mamba2,
    "mamba-ssm Mamba2": mamba_ssm,
}
"""Without a chunk: measured once for a shape and precision."""


def pace(
    make: Callable[..., Layer], x: Iterator[Tensor], tokens: int, runs: int, **how: Any
) -> tuple[float | None, str]:
    """Tokens a second, or why not."""
    try:
        layer = make(**how)
        if isinstance(layer, nn.Module):
            layer.eval()
        found = timed(lambda: layer(next(x)), runs, 1, how["device"])
    except ImportError as error:
        return None, f"not installed: {error.name or error}"
    # What others raise where they do not run has no common type.
    except Exception as error:
        return None, f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
    return tokens / found.median, ""


@torch.no_grad()
def layer_rows(
    cases: dict[str, Sizes],
    tokens: int,
    chunks: Iterable[int],
    dtypes: Iterable[torch.dtype],
    device: torch.device,
    runs: int = 3,
) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
    """A row for every case, and what it says of the target."""
    chunks = list(chunks)
    for dtype in dtypes:
        precision = str(dtype).removeprefix("torch.")
        for name, sizes in cases.items():
            size = tokens * sizes["hidden"] * dtype.itemsize
            make_x = partial(torch.randn, 1, tokens, sizes["hidden"], device=device, dtype=dtype)
            x = rotating(make_x, size, device)
            for chunk in chunks:
                how = {"sizes": sizes, "chunk": chunk, "dtype": dtype, "device": device}
                # What keeps no chunk is the same beside every one.
                peers = CHUNKED | (OTHERS if chunk == chunks[0] else {})
                ours, why = pace(our_layer, x, tokens, runs, **how)
                assert ours is not None, why
                row = {
                    "shape": name,
                    "dtype": precision,
                    "chunk": chunk,
                    "AllMem (tokens/s)": ours,
                }
                case = f"{name}, {precision}, chunk {chunk}, {device.type}"
                finding = unmeasured("titans", "not run", case)
                for peer, make in peers.items():
                    theirs, why = pace(make, x, tokens, runs, **how)
                    row[f"{peer} (tokens/s)"] = why or theirs
                    if theirs is not None:
                        row[f"of {peer}"] = ours / theirs
                    if peer == TITANS:
                        ratio = None if theirs is None else ours / theirs
                        finding = Finding("titans", case, ratio, why)
                yield row, [finding]


def versions() -> str:
    """Of the peers that are installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def notes(tokens: int) -> list[str]:
    return [
        f"{tokens} tokens in one call, batch 1, forward; median of runs after a warm-up.",
        (
            "AllMem: full projections, convolutions, norms and gate. titans-pytorch: NeuralMemory "
            "with MemorySwiGluMLP of the same heads, head size, width and chunk, momentum on."
        ),
        versions(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunks", default="512,64,16")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--shapes", default="SmolLM2-135M,Qwen3-0.6B")
    parser.add_argument("--device", default="cpu")
    add_options(parser, "peers")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokens = 128 if options.quick else options.tokens
    cases = {name: CASES[name] for name in options.shapes.split(",")}
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for row, said in layer_rows(
        TINY if options.quick else cases,
        tokens,
        [64, 16] if options.quick else [int(c) for c in options.chunks.split(",")],
        [getattr(torch, name) for name in options.dtypes.split(",")],
        torch.device(options.device),
    ):
        print(row, flush=True)
        rows.append(row)
        findings += said
    title = "A memory layer beside those of others"
    record(options.name, title, rows, notes(tokens), findings, options, options.device)


if __name__ == "__main__":
    main()
