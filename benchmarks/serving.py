"""What `allmem serve` does under load: whether every request gets its own answer, how fast, and
whether memory stays where it is.

    python -m benchmarks.serving [--engine vllm] [--only load,flat,long,smollm2]

Each part starts a server of its own and asks it over HTTP, as clients do. `load`, `flat` and `long`
ask a small model with random weights, memories included, whose answers were worked out before, each
prompt alone, by `generate`: an answer that is another one's, or none at all, is counted as wrong.
`smollm2` is about time alone.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from allmem.folder import save_folder
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_tokenizer, smollm2_file
from benchmarks.measure import add_options, record
from benchmarks.shapes import SHAPES, converted

NEW = 16
LONGEST = 600
MB = 1e6
PATIENCE = 600.0
"""Seconds that a request may take."""
PAUSE = 0.5
"""Seconds between two short questions beside a book."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and the answer that is right."""

    ids: list[int]
    answer: str | None = None


@dataclass(frozen=True)
class Answered:
    """What came, and when."""

    right: bool
    first: float
    """Seconds until the first token."""
    total: float
    tokens: int


# The server


@contextmanager
def server(model: str, engine: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`allmem serve` on a free port: its address, and its process."""
    command = [sys.executable, "-m", "allmem", "serve", model, "--engine", engine, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--name", "m", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+/v1", line):
                yield found[0], psutil.Process(process.pid)
                break
        else:
            raise SystemExit(f"the server ended with {process.wait()}: {' '.join(command)}")
    finally:
        process.terminate()
        process.wait(60)


def resident(process: psutil.Process) -> float:
    """MB that a server and the processes that it started have in memory."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family) / MB


# The model


def small_model() -> AllMemForCausalLM:
    """In fp32, with SmolLM2's vocabulary."""
    tiny = SHAPES["tiny"]
    shape = dataclasses.replace(tiny, sizes={**tiny.sizes, "vocab_size": 49152})
    return converted(shape, torch.float32, alpha=1.0)


@torch.no_grad()
def questions(model: AllMemForCausalLM, tokenizer: Any, count: int) -> list[Asked]:
    """Prompts of 1 to ``LONGEST`` tokens with their answers."""
    draw = random.Random(0)
    asked = []
    for _ in range(count):
        ids = [draw.randrange(100, 49000) for _ in range(draw.randint(1, LONGEST))]
        prompt = torch.tensor([ids])
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
        )
        asked.append(Asked(ids, tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)))
    return asked


# Clients


async def ask(client: httpx.AsyncClient, asked: Asked, tokens: int = NEW) -> Answered:
    """One streamed request."""
    body = {
        "model": "m",
        "prompt": asked.ids,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, text, used = time.perf_counter(), 0.0, "", 0
    async with client.stream("POST", "/completions", json=body) as response:
        response.raise_for_status()
        async for event in _events(response):
            first = first or time.perf_counter() - begin
            text += "".join(choice["text"] for choice in event["choices"])
            used = (event.get("usage") or {}).get("completion_tokens", used)
    right = used == tokens and asked.answer in (None, text)
    return Answered(right, first, time.perf_counter() - begin, used)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if line.startswith("data: ") and data != "[DONE]":
            yield json.loads(data)


async def ask_all(url: str, asked: Sequence[Asked], concurrency: int, tokens: int = NEW) -> Any:
    """All answers, and the seconds that they took together; so many requests at once."""
    gate = asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, question: Asked) -> Answered:
        async with gate:
            return await ask(client, question, tokens)

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        begin = time.perf_counter()
        answers = await asyncio.gather(*(one(client, question) for question in asked))
        return answers, time.perf_counter() - begin


def percentile(values: Sequence[float], part: int) -> float:
    """Of a hundred parts."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


def figures(answers: Sequence[Answered], seconds: float) -> dict[str, Any]:
    """Of one load."""
    firsts, totals = [a.first for a in answers], [a.total for a in answers]
    return {
        "wrong or lost": sum(not a.right for a in answers),
        "requests/s": len(answers) / seconds,
        "tokens/s": sum(a.tokens for a in answers) / seconds,
        **{f"first token p{p} (s)": percentile(firsts, p) for p in (50, 95)},
        **{f"whole p{p} (s)": percentile(totals, p) for p in (50, 95, 99)},
    }


# Parts


@dataclass(frozen=True)
class Ground:
    """What the parts on the small model share."""

    folder: str
    asked: list[Asked]
    engine: str
    quick: bool


def load(ground: Ground) -> Iterator[dict[str, Any]]:
    """As many requests at once as it says."""
    with server(ground.folder, ground.engine, "--slots", "8") as (url, process):
        asyncio.run(ask_all(url, ground.asked[:8], 8))
        for concurrency in (1, 4) if ground.quick else (1, 8, 32, 200):
            answers, seconds = asyncio.run(ask_all(url, ground.asked, concurrency))
            yield {
                "part": "load",
                "at once": concurrency,
                "requests": len(answers),
                **figures(answers, seconds),
                "resident (MB)": resident(process),
            }


def flat(ground: Ground) -> Iterator[dict[str, Any]]:
    """Memory after some requests and after ten times as many."""
    with server(ground.folder, ground.engine, "--slots", "8") as (url, process):
        before = 0.0
        for times in (1, 9):
            answers, seconds = asyncio.run(ask_all(url, ground.asked * times, 32))
            now = resident(process)
            before = before or now
            yield {
                "part": "flat",
                "at once": 32,
                "requests": len(answers),
                **figures(answers, seconds),
                "resident (MB)": now,
                "resident, of before": now / before,
            }


def long(ground: Ground) -> Iterator[dict[str, Any]]:
    """A book, and short questions beside it."""
    length = 4_000 if ground.quick else 200_000
    draw = random.Random(1)
    book = Asked([draw.randrange(100, 49000) for _ in range(length)])
    with server(ground.folder, ground.engine, "--slots", "8") as (url, process):
        answers, seconds = asyncio.run(ask_all(url, ground.asked[:8], 1))
        before = resident(process)
        yield {"part": "long", "what": "questions alone", **figures(answers, seconds)}
        answer, answers, most = asyncio.run(_beside(url, process, book, ground.asked))
        yield {
            "part": "long",
            "what": f"a prompt of {length:,} tokens",
            "wrong or lost": int(not answer.right),
            "first token p50 (s)": answer.first,
            "whole p50 (s)": answer.total,
            "resident (MB)": most,
            "resident, of before": most / before,
        }
        if answers:
            beside = {"part": "long", "what": "questions beside it", "requests": len(answers)}
            yield {**beside, **figures(answers, answer.total)}


async def _beside(
    url: str, process: psutil.Process, book: Asked, asked: Sequence[Asked]
) -> tuple[Answered, list[Answered], float]:
    """The book's answer, those of the questions that were asked meanwhile, and the most MB."""
    answers: list[Answered] = []
    most = resident(process)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        reading = asyncio.create_task(ask(client, book))
        while not reading.done():
            question = asked[len(answers) % len(asked)]
            answers.append(await ask(client, question))
            most = max(most, resident(process))
            await asyncio.sleep(PAUSE)
        # The last one may have been asked when the book was read already.
        return await reading, answers[:-1], most


def smollm2(ground: Ground) -> Iterator[dict[str, Any]]:
    """The real model, as it comes, in bf16."""
    draw = random.Random(2)
    asked = [Asked([draw.randrange(100, 49000) for _ in range(128)]) for _ in range(16)]
    sizes = ("--window", "512", "--sinks", "4", "--chunk", "256", "--dtype", "bfloat16")
    with server("smollm2", ground.engine, "--slots", "8", *sizes) as (url, process):
        asyncio.run(ask_all(url, asked[:2], 2, 4))
        for concurrency in (2,) if ground.quick else (1, 4, 8):
            answers, seconds = asyncio.run(ask_all(url, asked, concurrency, 4 * NEW))
            yield {
                "part": "smollm2",
                "at once": concurrency,
                "requests": len(answers),
                **figures(answers, seconds),
                "resident (MB)": resident(process),
            }


PARTS = {part.__name__: part for part in (load, flat, long, smollm2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="embedded")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, default all")
    add_options(parser, "serving")
    options = parser.parse_args()
    tokenizer = load_tokenizer(str(smollm2_file()))
    model = small_model()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        saved = save_folder(model, tokenizer, Path(folder) / "model")
        asked = questions(model, tokenizer, 20 if options.quick else 200)
        ground = Ground(str(saved), asked, options.engine, options.quick)
        for name in options.only.split(","):
            for row in PARTS[name](ground):
                rows.append(row)
                print(row, flush=True)
    small = (
        f"Engine {options.engine}. The small model: two layers of 64 features, window 64, fp32; "
        f"prompts of 1 to {LONGEST} tokens, answers of {NEW}, 8 slots. SmolLM2: prompts of 128 "
        f"tokens, answers of {4 * NEW}, bf16."
    )
    shared = (
        "Clients and server share the machine. Resident is what the server and the processes that "
        "it started have in memory."
    )
    record(f"{options.name}_{options.engine}", "Serving", rows, [small, shared], options=options)


if __name__ == "__main__":
    main()
