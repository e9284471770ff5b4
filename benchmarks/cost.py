"""Sizes and projections by what they cost, with what a small model recalls with them; and the
closed forms of the cost against what torch counts.

    python -m benchmarks.cost [candidates] [counted]

``candidates``: every setting at the two shapes of the paper, 128k tokens, window 4096, sinks 128,
chunk 2048; and distilled into a two-layer model, where minutes decide (``associative_recall``): the
same proportions of width, head size and rank. About half an hour on one core.

``counted``: one layer of each shape on the meta device reads a text, in calls as a model makes
them, while torch counts. Nothing is computed, so 128k tokens take seconds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from allmem.choices import Conversion
from allmem.cost.comparing import Comparison, compare
from allmem.cost.executed import decoded_pairs, window_pairs
from allmem.cost.shapes import outline_shape
from allmem.layout import Layout
from allmem.mixers.attention import WindowMixer
from allmem.models.layer import MixedAttention
from allmem.models.modeling import READ_BLOCK
from benchmarks.associative_recall import MEMORY, accuracy, distilled
from benchmarks.measure import record

LENGTH = 2**17
SHAPES = {"0.6B": ("qwen3-0.6b", 1024), "1.7B": ("qwen3-1.7b", 2048)}
KV_HEADS = 8
RECALL_HIDDEN, RECALL_HEADS = 128, 2


@dataclass(frozen=True)
class Candidate:
    """A memory by its proportions to a model of hidden size D and H KV heads."""

    projections: str = "full"
    rank: Fraction = Fraction(0)
    """Of D."""
    head: Fraction = Fraction(1)
    """Of D / H."""
    width: Fraction = Fraction(1)
    """Of the head size."""
    momentum: bool = True
    network: str = "swiglu"

    def options(self, hidden: int, heads: int) -> dict[str, Any]:
        """Of ``MemoryConfig``."""
        head_dim = int(self.head * hidden / heads)
        options: dict[str, Any] = {
            "projections": self.projections,
            "head_dim": head_dim,
            "width": int(self.width * head_dim),
            "momentum": self.momentum,
            "network": self.network,
        }
        return options | ({"rank": int(self.rank * hidden)} if self.rank else {})

    def __str__(self) -> str:
        rank = f"({_times('D', self.rank)})" if self.rank else ""
        parts = [f"{self.projections}{rank}"]
        if self.network == "linear":
            parts.append("linear network")
        else:
            parts.append(f"h = {_times('d', self.width)}")
        if self.head != 1:
            parts.append(f"d = {_times('D/H', self.head)}")
        return ", ".join(parts) + ("" if self.momentum else ", no momentum")


def _times(letter: str, share: Fraction) -> str:
    above = letter if share.numerator == 1 else f"{share.numerator}{letter}"
    return above if share.denominator == 1 else f"{above}/{share.denominator}"


HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
TWO = Fraction(2)
EIGHTH, SIXTEENTH, THIRTY_SECOND = Fraction(1, 8), Fraction(1, 16), Fraction(1, 32)
CANDIDATES = [
    Candidate(width=TWO),
    Candidate(),
    Candidate("lowrank", QUARTER),
    Candidate("lowrank", EIGHTH),
    Candidate("lowrank", SIXTEENTH, width=Fraction(3, 4)),
    Candidate("lowrank", EIGHTH, head=HALF, width=TWO),
    Candidate("lowrank", SIXTEENTH, head=HALF, width=TWO),
    Candidate("shared", THIRTY_SECOND),
    Candidate("shared", THIRTY_SECOND, head=HALF),
    Candidate("shared", THIRTY_SECOND, width=HALF),
    Candidate("lowrank", EIGHTH, momentum=False),
    Candidate(head=HALF, width=TWO),
    Candidate(width=HALF),
    Candidate(network="linear"),
]


def candidates(seeds: int, steps: int) -> None:
    """Write ``results/cost.md``."""
    rows: list[dict[str, Any]] = []
    for candidate in CANDIDATES:
        rows.append({"memory": str(candidate)})
        for label, (shape, hidden) in SHAPES.items():
            rows[-1] |= _cost(label, shape, candidate.options(hidden, KV_HEADS))
    costs = (
        f"FLOPs and cache: of full attention's at {LENGTH:,} tokens, attention and memory layers "
        "only, average over a prefill; window 4096, 128 sinks, chunk 2048; keys and values in "
        "bf16, fast weights in fp32. The paper says about 11 % (section 5.3)."
    )
    sizes = (
        "D hidden size, H KV heads, d memory head size (D/H unless said), h width; in brackets the "
        "rank. 0.6B: D 1024, D/H 128; 1.7B: D 2048, D/H 256. Added: slow weights, millions."
    )
    recall = (
        f"Recall: a two-layer model, D 128, D/H 64, distilled with {steps} steps of 8 sequences of "
        "128 tokens, window 32, memory step 0.5, clip 4; share of right answers by seed, with "
        "chunk 32 as in training and with chunk 8. The window alone has 0.42."
    )
    title = "What memories cost, and what they recall"
    if not seeds:
        record("cost", title, rows, [costs, sizes])
    for seed in range(seeds):
        for candidate, row in zip(CANDIDATES, rows, strict=True):
            options = candidate.options(RECALL_HIDDEN, RECALL_HEADS)
            model, _ = distilled(seed, {**MEMORY, **options}, steps=steps)
            for column, chunk in (("recall", 32), ("recall, C 8", 8)):
                found = f"{accuracy(model, 32, chunk):.3f}"
                row[column] = f"{row[column]}, {found}" if seed else found
            print(row, flush=True)
        # After each seed, since the next takes as long again.
        record("cost", title, rows, [costs, sizes, recall])


def _cost(label: str, shape: str, options: dict[str, Any]) -> dict[str, Any]:
    found = outline_shape(shape, Conversion(memory=options))
    comparison = compare(found.model, [LENGTH], found.dtype)
    added = sum(p.numel() for p in found.model.memory_parameters().values())
    return {
        f"{label}: FLOPs": f"{_share(comparison, comparison.prefill):.1%}",
        f"{label}: cache": f"{_share(comparison, comparison.cache):.2%}",
        f"{label}: added": f"{added / 1e6:.1f}",
    }


def _share(comparison: Comparison, count: Any) -> float:
    return float(count("AllMem", 0) / count("full attention", 0))


REDUCTIONS = ("linalg_vector_norm", "_fused_rms_norm", "mean", "sum", "_softmax")


class _Elements(TorchDispatchMode):
    """Counts the numbers that elementwise operations write and that reductions read."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags:
            self.count += out.numel()
        elif func.overloadpacket.__name__ in REDUCTIONS:
            self.count += args[0].numel()
        return out


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    """The meta device knows no autocast; on it nothing is rounded that it could change."""
    with mock.patch("torch.autocast", return_value=contextlib.nullcontext()):
        yield


@torch.no_grad()
def read(mixed: MixedAttention, tokens: int, call: int, before: int = 0) -> tuple[int, int]:
    """FLOPs that torch counts, and numbers that elementwise operations write, while a layer on the
    meta device reads ``tokens`` tokens after ``before`` others."""
    device, dtype = torch.device("meta"), torch.bfloat16
    state = mixed.init_state(1, dtype, device)
    elements = _Elements()
    with _meta(), FlopCounterMode(display=False) as counter, elements:
        for start in range(before, before + tokens, call):
            slots = min(call, before + tokens - start)
            x = torch.empty(1, slots, mixed.attention.shape.hidden_size, dtype=dtype, device=device)
            _, state = mixed(x, state, Layout.dense(start, 1, slots, device))
    return counter.get_total_flops(), elements.count


def _counted(mixed: MixedAttention, before: int, tokens: int) -> dict[str, Any]:
    """The closed form of ``tokens`` tokens after ``before`` others, and what was counted."""
    attention = mixed.attention
    assert isinstance(attention, WindowMixer)
    found, elements = read(mixed, tokens, READ_BLOCK, before)
    formula = mixed.flops(before + tokens) - mixed.flops(before)
    needed = attention.pairs(before + tokens) - attention.pairs(before)
    window = attention.window
    scored = decoded_pairs(window) if before else window_pairs(tokens, window)
    masked = 4 * attention.shape.query_heads * attention.shape.head_dim * (scored - needed)
    return {
        "reads": f"one after {before:,}" if before else f"{tokens:,}",
        "closed form": f"{formula / tokens / 1e6:.4g} M",
        "counted": f"{found / tokens / 1e6:.4g} M",
        "counted / closed form": f"{found / formula:.4f}",
        "masked scores": f"{masked / tokens / 1e6:.4g} M",
        "unexplained": found - formula - masked,
        "elementwise": f"{elements / tokens / 1e6:.3g} M",
    }


def counted() -> None:
    """Write ``results/cost_counted.md``."""
    rows: list[dict[str, Any]] = []
    memories: dict[str, dict[str, Any]] = {
        "full": {},
        "lowrank(64)": {"projections": "lowrank", "rank": 64},
        "shared(32)": {"projections": "shared", "rank": 32},
    }
    for source, length in (("smollm2", 2**14), ("qwen3-0.6b", LENGTH), ("qwen3-1.7b", LENGTH)):
        for name, memory in memories.items():
            mixed = outline_shape(source, Conversion(memory=memory)).model.mixers()[0].bfloat16()
            for before, tokens in ((0, length), (length + READ_BLOCK // 4, 1)):
                rows.append({"layer": f"{source}, {name}", **_counted(mixed, before, tokens)})
                print(rows[-1], flush=True)
    what = (
        "A token, one layer with its memory; FLOPs of matrix products and scores, a multiply-add "
        "as two. Torch's FlopCounterMode, on the meta device, in calls of 2,048 tokens."
    )
    masked = (
        "Masked scores: the window attention scores a block of 128 queries against all keys in the "
        "reach of any, so W + 127 + S of them instead of W + S."
    )
    elementwise = (
        "Elementwise, in no FLOP count: numbers that elementwise operations write and that norms, "
        "sums and softmaxes read. A single token is added to the open chunk's sums, as many "
        "numbers as fast weights, whose norms are taken again; a prefill does both once a call."
    )
    notes = [what, masked, elementwise]
    record("cost_counted", "Closed forms of the cost against what torch counts", rows, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["candidates", "counted"])
    parser.add_argument("--seeds", type=int, default=2, help="of recall; 0 leaves it out")
    parser.add_argument("--steps", type=int, default=200, help="of a distillation")
    options = parser.parse_args()
    if "counted" in options.what:
        counted()
    if "candidates" in options.what:
        candidates(options.seeds, options.steps)


if __name__ == "__main__":
    main()
