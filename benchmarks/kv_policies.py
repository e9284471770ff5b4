"""KV policies at equal bytes: what a model predicts with each, and whether it finds a pass key.

    python -m benchmarks.kv_policies --tokens 4096 --keys 5

All policies read the same novel with SmolLM2-135M-Instruct, with as many bytes on the device as the
window and its sinks have. Perplexity is that of the tokens that stand further from the beginning
than the window reaches. A pass key is a sentence in the middle of the novel, further back than the
window. It is found if the model's likeliest words after the question are its digits; its loss tells
how near the others came. Where the question comes first, it stands before the novel too, and
``eviction`` keeps what it looks at.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import allmem
from allmem.documents import READ, load_book
from allmem.mixers.cache_sizes import equal_caches
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_base, load_tokenizer, smollm2_file
from benchmarks.measure import record
from benchmarks.prose import losses

SENTENCE = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
QUESTION = "What is the pass key?"
ANSWER = " The pass key is"
DEPTHS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Where pass keys stand, as shares of the text."""


@torch.no_grad()
def recalls(model: AllMemForCausalLM, prompt: list[int], key: list[int]) -> tuple[bool, float]:
    """Whether the key is the likeliest continuation of the prompt, and its loss in nats."""
    cache = AllMemCache(model.config)
    first = model(input_ids=torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1).logits
    rest = model(input_ids=torch.tensor([key[:-1]]), past_key_values=cache).logits
    logits, wanted = torch.cat([first, rest], 1)[0].float(), torch.tensor(key)
    loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    return bool((logits.argmax(-1) == wanted).all()), float(loss)


def prompts(
    tokenizer: Any, novel: list[int], tokens: int, keys: int, first: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """Texts of about so many tokens with a pass key in each, and the keys."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    generator = torch.Generator().manual_seed(0)
    for number in range(keys):
        key = str(int(torch.randint(10_000, 99_999, (1,), generator=generator)))
        place = int(DEPTHS[number % len(DEPTHS)] * tokens)
        start = number * 500
        before, after = novel[start : start + place], novel[start + place : start + tokens]
        asked = encode(QUESTION + "\n\n") if first else []
        text = [*asked, *before, *encode(SENTENCE.format(key=key)), *after]
        yield [*text, *encode("\n\n" + QUESTION + ANSWER)], encode(" " + key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of the novel")
    parser.add_argument("--key-tokens", type=int, default=1536, help="around each pass key")
    parser.add_argument("--keys", type=int, default=5, help="pass keys")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--sinks", type=int, default=8)
    parser.add_argument("--policies", default="full,window,ladder,eviction,priority,blocks")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="kv_policies")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    source = smollm2_file()
    tokenizer = load_tokenizer(source)
    base = load_base(source, dtype=dtype)
    sizes = {"window": options.window, "sinks": options.sinks}
    window = allmem.convert(copy.deepcopy(base), mixers="window", **sizes)
    mixed = window.mixers()[0]
    target, shape = mixed.state_bytes(1, dtype), mixed.attention.shape
    layers = len(window.mixers())
    asked = len(tokenizer(QUESTION + "\n\n", add_special_tokens=False).input_ids)
    own: dict[str, dict[str, Any]] = {"priority": {"priority": asked}}
    novel = list(tokenizer(load_book(READ)[:200_000], add_special_tokens=False).input_ids)
    ids = torch.tensor([novel[: options.tokens]])

    rows = []
    for name in options.policies.split(","):
        mixer = {"priority": "eviction"}.get(name, name)
        chosen = own.get(name, {})
        if mixer not in ("full", "window"):
            equal = equal_caches(
                target,
                shape,
                dtype,
                sinks=options.sinks,
                layers=layers,
                names=[mixer],
                options={mixer: chosen},
            )
            chosen = {**chosen, "slots": equal[mixer].slots}
        model = allmem.convert(
            copy.deepcopy(base),
            mixers=mixer,
            mixer_options={mixer: chosen} if chosen else None,
            **sizes,
        )
        began = time.perf_counter()
        beyond = losses(model, ids)[options.window + options.sinks :]
        seconds = time.perf_counter() - began
        found = [
            recalls(model, prompt, key)
            for prompt, key in prompts(
                tokenizer, novel, options.key_tokens, options.keys, name == "priority"
            )
        ]
        attentions = [m.attention for m in model.mixers()]
        device, total = (
            sum(count(options.tokens, dtype) for count in counts)
            for counts in (
                [a.device_bytes for a in attentions],
                [a.state_bytes for a in attentions],
            )
        )
        rows.append(
            {
                "policy": "eviction, question first" if name == "priority" else name,
                "slots": chosen.get("slots", "all" if name == "full" else options.window + 8),
                "on the device (MB)": device / 1e6,
                "in all (MB)": total / 1e6,
                "perplexity beyond the window": math.exp(float(beyond.double().mean())),
                "pass keys found": f"{sum(right for right, _ in found)} of {len(found)}",
                "nats a key": statistics.mean(loss for _, loss in found),
                "reading (s)": seconds,
            }
        )
        print(rows[-1], flush=True)
    record(
        options.name,
        "KV policies without training, at equal bytes",
        rows,
        [
            f"SmolLM2-135M-Instruct, {options.dtype}, {options.tokens} tokens of the novel.",
            f"Window {options.window}, sinks {options.sinks}. Bytes after the last token.",
            f"Pass keys stand in {options.key_tokens} tokens, at the shares {DEPTHS} of them.",
        ],
    )


if __name__ == "__main__":
    main()
