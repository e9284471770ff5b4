"""Prefill, decoding and batch of a paper's shape on a GPU, beside full attention.

Full attention is the base model by itself: a text in one call through torch's fused kernels, of
which the fastest counts, and decoding from a cache that copies nothing (``full_cache``). AllMem
reads as the library does, in blocks of 2,048 tokens; longer blocks stand beside it, to see what
they would bring. Weights are random, keys and values of long caches too; AllMem's state at a length
is what reading so many tokens left.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from allmem.cost.lengths import length_name
from allmem.kernels import use_kernels
from allmem.models import modeling
from allmem.models.cache import AllMemCache
from allmem.models.decoding import use_decoding
from allmem.models.modeling import AllMemForCausalLM
from benchmarks.full_cache import kv_bytes, roomy_random
from benchmarks.measure import Timing, timed
from benchmarks.shapes import Shape, converted, plain
from benchmarks.targets import Finding

__all__ = ["Pair", "batch_rows", "decode_rows", "prefill_rows"]

FULL, ALLMEM = "full attention", "AllMem"
STEPS = 16
"""Tokens that are generated in a run."""
KERNELS: dict[str, SDPBackend | None] = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
Result = tuple[dict[str, Any], list[Finding]]


@dataclass(frozen=True)
class Pair:
    """A shape's two models and the device that they stand on."""

    shape: Shape
    device: torch.device
    base: PreTrainedModel
    ours: AllMemForCausalLM

    @classmethod
    def of(cls, shape: Shape, device: torch.device) -> Pair:
        return cls(shape, device, plain(shape, device=device), converted(shape, device=device))

    def ids(self, length: int) -> Tensor:
        words = self.base.config.vocab_size
        return torch.randint(10, words, (1, length), device=self.device)


def _kernel(name: str) -> AbstractContextManager[Any]:
    backend = KERNELS[name]
    return contextlib.nullcontext() if backend is None else sdpa_kernel([backend])


@torch.no_grad()
def _read(model: PreTrainedModel, cache: Any, ids: Tensor) -> Any:
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def fastest_kernel(pair: Pair, length: int) -> tuple[str, str]:
    """Which of ``KERNELS`` reads fastest, and what was seen of all."""
    ids, seen = pair.ids(length), {}
    said = []
    for name in KERNELS:
        try:
            with _kernel(name):
                found = timed(lambda: _read(pair.base, DynamicCache(), ids), 3, 1, pair.device)
        # A kernel that this machine does not have.
        except RuntimeError as error:
            said.append(f"{name}: {str(error).strip().splitlines()[0][:60]}")
            continue
        seen[name] = found.median
        said.append(f"{name} {found.median:.3g} s")
    return min(seen, key=lambda name: seen[name]), f"at {length_name(length)}: " + ", ".join(said)


def _peak(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and gigabytes that were allocated at most; 0 on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = work()
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return found, most / 1e9


def prefill_rows(
    pair: Pair, lengths: list[int], blocks: list[int], runs: int, target: int
) -> Iterator[Result]:
    """A row for every length.

    Args:
        blocks: tokens of a call of AllMem, beside the library's own, at the target's length.
        target: the length that the target is about.
    """
    kernel, seen = fastest_kernel(pair, min(lengths))
    for number, length in enumerate(lengths):
        ids = pair.ids(length)
        # Long texts take seconds, and differ little.
        often = runs if length <= 32768 else max(runs - 1, 1)

        def ours(ids: Tensor = ids, often: int = often) -> Timing:
            read = lambda: _read(pair.ours, AllMemCache(pair.ours.config), ids)  # noqa: E731
            return timed(read, often, 1, pair.device)

        def full(ids: Tensor = ids, often: int = often) -> Timing:
            with _kernel(kernel):
                return timed(lambda: _read(pair.base, DynamicCache(), ids), often, 1, pair.device)

        theirs, their_peak = _peak(pair.device, full)
        mine, my_peak = _peak(pair.device, ours)
        _free(pair.device)
        row: dict[str, Any] = {
            "model": pair.shape.title,
            "tokens": length_name(length),
            f"{FULL} (s)": theirs,
            f"{ALLMEM} (s)": mine,
            "times as fast": theirs.median / mine.median,
            f"{FULL}: peak (GB)": their_peak,
            f"{ALLMEM}: peak (GB)": my_peak,
            "kernel": kernel if number else f"{kernel}; {seen}",
        }
        findings = []
        case = f"{pair.shape.title}, {length_name(length)}"
        if length == target:
            spread = f"{theirs.fastest / mine.slowest:.3g}–{theirs.slowest / mine.fastest:.3g}"
            findings.append(Finding("gpu prefill", case, row["times as fast"], spread))
            for block in blocks:
                with mock.patch.object(modeling, "READ_BLOCK", block):
                    longer = ours(ids, 1)
                row[f"blocks of {length_name(block)} (s)"] = longer
                ratio = theirs.median / longer.median
                remark = f"read in blocks of {length_name(block)}, which is not the default"
                findings.append(Finding("gpu prefill", case, ratio, remark))
                _free(pair.device)
        yield row, findings


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def _steps(model: PreTrainedModel, cache: Any, rows: int, device: torch.device) -> None:
    token = torch.full((rows, 1), 100, device=device)
    for _ in range(STEPS):
        model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _time_steps(
    model: PreTrainedModel, cache: Any, rows: int, device: torch.device, runs: int
) -> Timing:
    """Seconds of ``STEPS`` steps."""
    return timed(lambda: _steps(model, cache, rows, device), runs, 1, device)


def decode_rows(pair: Pair, lengths: list[int], batches: list[int], runs: int) -> Iterator[Result]:
    """A row for every length and batch: milliseconds of a step."""
    few: dict[str, float] = {}
    for length in lengths:
        # Of one text, whose state then stands in every row.
        state = _read(pair.ours, AllMemCache(pair.ours.config), pair.ids(length))
        for batch in batches:
            mine = {
                way: _our_steps(pair, state, batch, runs, *how) for way, how in ways(pair).items()
            }
            row: dict[str, Any] = {
                "model": pair.shape.title,
                "tokens before": length_name(length),
                "batch": batch,
                **{f"{ALLMEM}, {way} (ms a step)": found for way, found in mine.items()},
            }
            row[f"{FULL} (ms a step)"] = _full_steps(pair, length, batch, runs)
            findings = []
            for way, found in mine.items() if batch == batches[0] else ():
                if not isinstance(found, Timing):
                    continue
                few.setdefault(way, found.median)
                if length == lengths[-1]:
                    case = f"{pair.shape.title}, {length_name(length)} against "
                    case += f"{length_name(lengths[0])}, batch {batch}, {pair.device.type}, {way}"
                    findings.append(Finding("decode growth", case, found.median / few[way]))
            yield row, findings
        del state
        _free(pair.device)


def ways(pair: Pair) -> dict[str, tuple[str, str]]:
    """How AllMem's steps are taken: in which way of ``allmem.models.decoding``, and by whose
    kernels."""
    found = {"eager": ("eager", "torch")}
    if pair.device.type == "cuda":
        found["graph"] = ("graph", "torch")
        found["graph, Triton"] = ("graph", "triton")
        found["graph, compiled"] = ("compiled,graph", "torch")
    return found


def _our_steps(
    pair: Pair, state: AllMemCache, batch: int, runs: int, how: str, kernels: str
) -> Timing | str:
    """Milliseconds of a step, or why there are none: these paths have yet to meet every machine."""
    cache = state.fork()
    cache.batch_repeat_interleave(batch)
    try:
        with use_decoding(how), use_kernels(kernels):
            found = _time_steps(pair.ours, cache, batch, pair.device, runs)
    except Exception as error:
        if how == "eager":
            raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
    finally:
        del cache
        _free(pair.device)
    return found.times(1e3 / STEPS)


def _full_steps(pair: Pair, length: int, batch: int, runs: int) -> Timing | str:
    """Milliseconds of a step of the base model, or why there are none."""
    room = STEPS * (runs + 1)
    try:
        cache = roomy_random(pair.base, length, room, batch)
        found = _time_steps(pair.base, cache, batch, pair.device, runs)
    except torch.OutOfMemoryError:
        return "does not fit"
    finally:
        _free(pair.device)
    return found.times(1e3 / STEPS)


def batch_rows(pair: Pair, length: int, memory: int) -> Iterator[Result]:
    """How many sequences of a length decode together beside the weights: by the bytes of a
    sequence, and the largest batch at or below that with which steps ran.

    Args:
        memory: bytes of the device.
    """
    state = _read(pair.ours, AllMemCache(pair.ours.config), pair.ids(length))
    per_token = kv_bytes(pair.base)
    ran: dict[str, int] = {}
    formula: dict[str, int] = {}
    row: dict[str, Any] = {"model": pair.shape.title, "tokens": length_name(length)}
    both = sum(p.nbytes for m in (pair.base, pair.ours) for p in m.parameters())
    for name, model, each in (
        (FULL, pair.base, per_token * length),
        (ALLMEM, pair.ours, state.nbytes),
    ):
        weights = sum(p.nbytes for p in model.parameters())
        formula[name] = (memory - weights) // each
        # Here the other model's weights stand beside it.
        ran[name], step = _largest(pair, name, (memory - both) // each, length, state)
        row |= {
            f"{name}: bytes of a sequence (MB)": each / 1e6,
            f"{name}: batch by bytes": formula[name],
            f"{name}: batch that ran": ran[name],
            f"{name}: tokens/s there": ran[name] / step.median * STEPS if step else "",
        }
    findings = []
    for what, counts in (("that ran", ran), ("by bytes", formula)):
        if counts[FULL]:
            case = f"{pair.shape.title}, {length_name(length)}, {what}"
            remark = f"{counts[ALLMEM]} against {counts[FULL]}"
            findings.append(Finding("gpu batch", case, counts[ALLMEM] / counts[FULL], remark))
    yield row, findings


def _largest(
    pair: Pair, name: str, most: int, length: int, state: AllMemCache
) -> tuple[int, Timing | None]:
    """The first batch from ``most`` downwards, by a tenth or by one, with which steps run."""
    batch = most
    while batch > 0:
        cache: Any = None
        try:
            if name == FULL:
                cache = roomy_random(pair.base, length, 3 * STEPS, batch)
            else:
                cache = state.fork()
                cache.batch_repeat_interleave(batch)
            model = pair.base if name == FULL else pair.ours
            return batch, _time_steps(model, cache, batch, pair.device, 2)
        except torch.OutOfMemoryError:
            batch = min(batch - 1, int(batch * 0.9))
        finally:
            del cache
            _free(pair.device)
    return 0, None
