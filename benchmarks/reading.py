"""Reading and generating against full attention, by length.

    python -m benchmarks.reading

Seconds to read a text of random tokens into an empty state, seconds per generated token after it,
and bytes of state: for the base model (SDPA), the window with sinks alone, and AllMem, from the
same weights (the memory's own weights do not change the cost).

- Full attention reads a text in one call, which is faster than block by block; the other two in
  blocks of 2,048 tokens, as the library does.
- Texts up to 8k are read several times, the readers in turn. Longer ones once in each pass: full
  attention reads every length by itself, the others read the longest with the clock read at every
  length on the way, since how they read does not depend on what is to come.
- Generation is timed after all reading, in rounds over all readers and lengths, so that a machine
  that slows down slows all of them. Each goes on from the state that reading left. Where full
  attention was not to read (``--full-to``), its cache is filled with random keys and values; it is
  never charged for copies of it (``benchmarks/full_cache.py``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import allmem
from allmem.config import MemoryConfig
from allmem.cost.lengths import length_name, parse_lengths
from allmem.models.cache import AllMemCache
from allmem.models.decoding import use_decoding
from allmem.models.modeling import READ_BLOCK
from allmem.models.sources import load_base, smollm2_file
from benchmarks.full_cache import roomy, roomy_random
from benchmarks.measure import Timing, add_options, record, timing_of
from benchmarks.shapes import SHAPES, plain
from benchmarks.targets import Finding, unmeasured

SHORT = 8192
"""Texts up to this are read several times."""
RANDOM = "random"
MODEL_HELP = "hub name or folder; default: SmolLM2; 'random': its shape, with random weights"
FULL, WINDOW, ALLMEM = "full attention", "window + sinks", "AllMem"
COMPILED = "AllMem, compiled"
"""AllMem that generates in compiled code; it reads as the other does."""


@dataclass
class Reader:
    """A model, and what was measured of it by length."""

    name: str
    model: PreTrainedModel
    new_cache: Callable[[], Any]
    continues: bool
    """Whether it reads a longer text as it reads a shorter one, and then more."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    caches: dict[int, Any] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of state."""
    decoding: dict[int, list[float]] = field(default_factory=dict)
    """Seconds per token, one for every round."""
    how: str = "eager"
    """In which way it generates (``allmem.models.decoding``)."""


@torch.no_grad()
def read(reader: Reader, ids: Tensor, lengths: list[int], keep: bool) -> None:
    """Read ids [1, T] into an empty state and note the time at every one of ``lengths``.

    Args:
        lengths: rising, the last one T; a reader that does not continue takes the last alone.
        keep: whether the states there are kept. Copies of them are made outside of the time.
    """
    cache, taken, done = reader.new_cache(), 0.0, 0
    for length in lengths if reader.continues else lengths[-1:]:
        begin = time.perf_counter()
        step = READ_BLOCK if reader.continues else length
        for first in range(done, length, step):
            block = ids[:, first : min(first + step, length)]
            reader.model(input_ids=block, past_key_values=cache, use_cache=True, logits_to_keep=1)
        taken, done = taken + time.perf_counter() - begin, length
        reader.seconds.setdefault(length, []).append(taken)
        if keep and length not in reader.caches:
            reader.caches[length] = cache.fork() if isinstance(cache, AllMemCache) else cache


@torch.no_grad()
def decode(reader: Reader, length: int, tokens: int) -> float:
    """Seconds per generated token after ``length`` others."""
    token = torch.full((1, 1), 100)
    begin = time.perf_counter()
    with use_decoding(reader.how):
        for _ in range(tokens):
            reader.model(
                input_ids=token,
                past_key_values=reader.caches[length],
                use_cache=True,
                logits_to_keep=1,
            )
    return (time.perf_counter() - begin) / tokens


def state_bytes(cache: Any) -> int:
    """Bytes that a sequence left behind."""
    if isinstance(cache, AllMemCache):
        return cache.nbytes
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def make_readers(options: argparse.Namespace) -> list[Reader]:
    sizes = {"window": options.window, "sinks": options.sinks}
    memory = MemoryConfig(chunk=options.chunk, projections=options.projections)
    dtype = getattr(torch, options.dtype)

    def base() -> PreTrainedModel:
        if options.quick or options.model == RANDOM:
            return plain(SHAPES["tiny" if options.quick else "smollm2"], dtype)
        return load_base(options.model or smollm2_file(), dtype=dtype)

    readers = [Reader(FULL, base(), DynamicCache, continues=False)]
    for name, mixers in ((WINDOW, "window"), (ALLMEM, "allmem")):
        own = memory if mixers == "allmem" else None
        model = allmem.convert(base(), mixers=mixers, memory=own, **sizes)
        new_cache = lambda m=model: AllMemCache(m.config)  # noqa: E731 - one for every model
        readers.append(Reader(name, model, new_cache, continues=True))
    return readers


def read_all(readers: list[Reader], ids: Tensor, options: argparse.Namespace) -> None:
    """Short texts several times, the readers in turn; then the passes."""
    lengths = parse_lengths(options.lengths)
    short = [n for n in lengths if n <= SHORT]
    last = {FULL: parse_lengths(options.full_to)[-1], WINDOW: parse_lengths(options.window_to)[-1]}
    for n in short:
        for run in range(options.runs + 1):
            for reader in readers:
                read(reader, ids[:, :n], [n], keep=run == options.runs)
                print(reader.name, n, f"{reader.seconds[n][-1]:.2f} s", flush=True)
                if not run:
                    # That was the warm-up.
                    del reader.seconds[n]
    for _ in range(options.passes):
        for reader in readers:
            own = [n for n in lengths if SHORT < n <= last.get(reader.name, n)]
            ways = [[n] for n in own]
            if own and reader.continues:
                # With what is compared with longer texts, under the same circumstances.
                ways = [[n for n in lengths if n == SHORT] + own]
            for way in ways:
                read(reader, ids[:, : way[-1]], way, keep=True)
                said = [f"{n}: {reader.seconds[n][-1]:.1f} s" for n in way]
                print(reader.name, *said, flush=True)


def decode_all(readers: list[Reader], lengths: list[int], tokens: int, rounds: int) -> None:
    """Rounds over all readers and lengths; the first warms up. Full attention, which takes long,
    generates fewer tokens in a round. AllMem generates in compiled code too, as a reader of its
    own."""
    full = readers[0]
    few, room = -(-tokens // 4), (rounds + 1) * tokens
    for n in lengths:
        if n in full.caches:
            full.caches[n] = roomy(full.caches[n], room)
        else:
            full.caches[n] = roomy_random(full.model, n, room)
    ours = next(reader for reader in readers if reader.name == ALLMEM)
    forks = {n: cache.fork() for n, cache in ours.caches.items()}
    again = Reader(COMPILED, ours.model, ours.new_cache, True, caches=forks, how="compiled")
    readers.append(again)
    for reader in readers:
        reader.sizes = {n: state_bytes(cache) for n, cache in reader.caches.items()}
    for turn in range(rounds + 1):
        for reader in readers:
            for n in reader.caches:
                seconds = decode(reader, n, few if reader is full else tokens)
                if turn:
                    reader.decoding.setdefault(n, []).append(seconds)


def judge(readers: list[Reader]) -> list[Finding]:
    """What was measured of the targets."""
    full, ours = (next(r for r in readers if r.name == name) for name in (FULL, ALLMEM))
    findings = []
    for key, length in (("prefill 4k", 4096), ("prefill 32k", 32768)):
        if length in full.seconds and length in ours.seconds:
            findings.append(Finding(key, length_name(length), *_ratio(full, ours, length)))
        else:
            findings.append(unmeasured(key, f"{length} tokens were not read"))
    short, long = ours.seconds.get(8192), ours.seconds.get(65536)
    if short and long:
        growth = statistics.median(long) / 8 / statistics.median(short)
        spread = f"{min(long) / 8 / max(short):.3g}–{max(long) / 8 / min(short):.3g}"
        findings.append(Finding("prefill growth", ALLMEM, growth, spread))
    else:
        findings.append(unmeasured("prefill growth", "8k and 64k were not both read"))
    for reader in (r for r in readers if r.name in (ALLMEM, COMPILED)):
        few, many = reader.decoding.get(1024), reader.decoding.get(131072)
        if few and many:
            growth = statistics.median(many) / statistics.median(few)
            rounds = [b / a for a, b in zip(few, many, strict=True)]
            remark = f"within rounds {min(rounds):.3g}–{max(rounds):.3g}"
            findings.append(Finding("decode growth", reader.name, growth, remark))
        else:
            findings.append(unmeasured("decode growth", "1k and 128k were not both read"))
    return findings


def _ratio(full: Reader, ours: Reader, length: int) -> tuple[float, str]:
    """Seconds of one over those of the other, and its spread."""
    a, b = full.seconds[length], ours.seconds[length]
    return statistics.median(a) / statistics.median(b), (
        f"{min(a) / max(b):.3g}–{max(a) / min(b):.3g}"
    )


def rows_of(readers: list[Reader], lengths: list[int]) -> list[dict[str, Any]]:
    rows = []
    for n in lengths:
        row: dict[str, Any] = {"tokens": n}
        for reader in readers:
            of = reader.name
            if reader.name != COMPILED:
                row[f"{of}: read (s)"] = timing_of(reader.seconds[n]) if n in reader.seconds else ""
            decoded: Timing | str = timing_of(reader.decoding[n]) if n in reader.decoding else ""
            row[f"{of}: per generated token (s)"] = decoded
            if reader.name != COMPILED:
                row[f"{of}: state (MB)"] = reader.sizes[n] / 1e6 if n in reader.sizes else ""
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help=MODEL_HELP)
    parser.add_argument("--lengths", default="1k,4k,8k,32k,64k,128k")
    parser.add_argument("--full-to", default="32k", help="longest text for full attention")
    parser.add_argument("--window-to", default="32k", help="longest text for the window alone")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--sinks", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--projections", default="full")
    parser.add_argument("--runs", type=int, default=3, help="of texts up to 8k")
    parser.add_argument("--passes", type=int, default=2, help="over longer ones")
    parser.add_argument("--decode", type=int, default=8, help="tokens to generate in a round")
    parser.add_argument("--rounds", type=int, default=7, help="of generation")
    parser.add_argument("--dtype", default="bfloat16")
    add_options(parser, "reading")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.full_to, options.window_to = "1k,4k,16k", "16k", "16k"
        options.window, options.sinks, options.chunk = 64, 4, 32
        options.runs, options.passes, options.decode, options.rounds = 1, 1, 2, 2
    lengths = parse_lengths(options.lengths)
    readers = make_readers(options)
    generator = torch.Generator().manual_seed(0)
    words = readers[0].model.config.vocab_size
    ids = torch.randint(10, words, (1, lengths[-1]), generator=generator)
    read_all(readers, ids, options)
    decode_all(readers, lengths, options.decode, options.rounds)
    runs = f"{options.runs} runs up to {length_name(SHORT)} after a warm-up, then {options.passes}"
    notes = [
        f"{options.model or 'SmolLM2-135M-Instruct'}, {options.dtype}, batch 1.",
        f"Window {options.window}, sinks {options.sinks}, chunk {options.chunk}, projections "
        + options.projections,
        f"Median (fastest–slowest): {runs}.",
        f"Generated: {options.rounds} rounds of {options.decode} tokens, all lengths in turn.",
        f"Beyond {options.full_to} full attention generates from random keys and values.",
        "Its keys and values are never copied to append one.",
    ]
    rows = rows_of(readers, lengths)
    title = "Reading and generating, by length"
    record(options.name, title, rows, notes, judge(readers), options)


if __name__ == "__main__":
    main()
