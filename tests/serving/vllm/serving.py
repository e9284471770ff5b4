"""Tiny models in vLLM, and what transformers makes of the same prompts.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import base_model, text, tiny_model

CALM = -7.0
"""Of the rates' bias. At the rates of the other tests every write is clipped, and a rounding error
grows a thousandfold in a hundred tokens, in whatever engine; at this one the writes still decide
the answers and 4,000 tokens leave an error of 1e-5."""
CLEAR = 1e-3
"""By how much the best logit leads where tokens are compared."""
CLOSE = 1e-4
"""Of log-probabilities in fp32."""
STEP_TOKENS = 23
"""Of all sequences together: prompts are cut anywhere, and no chunk or window is a divisor."""


def calm_model(name: str = "llama", **options: Any) -> AllMemForCausalLM:
    """A tiny model with random slow weights, whose logits another order of sums hardly changes."""
    return calmed(tiny_model(name, **options))


@torch.no_grad()
def calmed(model: AllMemForCausalLM) -> AllMemForCausalLM:
    """With rates at which an error hardly grows."""
    for name, parameter in model.memory_parameters().items():
        if name.endswith("eta.bias"):
            parameter.fill_(CALM)
    return model.eval()


def prompts_of(*lengths: int) -> list[list[int]]:
    return [text(1, length, seed=i)[0].tolist() for i, length in enumerate(lengths)]


MIXED = prompts_of(1, 2, 3, 5, 11, 13, 24, 40, 61, 77, 100, 120)
"""Twelve prompts, some shorter than a chunk, some many windows long."""

CACHED = {"enable_prefix_caching": True, "block_size": 8, "disable_log_stats": False}
"""With snapshots every 8 tokens."""


def saved_base(folder: Path, name: str, seed: int = 0) -> Path:
    base_model(name, seed).save_pretrained(folder / "base")
    return folder / "base"


@contextmanager
def serving(model: str | Path, **options: Any) -> Iterator[Any]:
    """vLLM with a model; four sequences at once and small steps, unless ``options`` say more."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_num_seqs": 4,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 64 << 20,
        "disable_log_stats": True,
        "generation_config": "vllm",
    }
    llm = LLM(model=str(model), **{**settings, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def metric(llm: Any, name: str) -> float:
    return sum(m.value for m in llm.get_metrics() if m.name == name)


def greedy(tokens: int) -> Any:
    """The best token each time, with the log-probabilities of the best three."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=3, detokenize=False
    )


def answers(llm: Any, prompts: Sequence[list[int]], tokens: int = 12) -> list[Any]:
    """vLLM's greedy answers."""
    texts = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [o.outputs[0] for o in llm.generate(texts, greedy(tokens), use_tqdm=False)]


@torch.no_grad()
def assert_as_generate(
    model: AllMemForCausalLM,
    prompts: Sequence[list[int]],
    found: Sequence[Any],
    close: float = CLOSE,
    **reading: Any,
) -> None:
    """Answers are those of ``generate``, up to the first near tie, and every log-probability that
    was told is the model's for that text.

    Args:
        reading: window and chunk in place of the model's own.
    """
    compared = 0
    for prompt, answer in zip(prompts, found, strict=True):
        told = list(answer.token_ids)
        cache = AllMemCache(model.config, **reading)
        generated = model.generate(
            torch.tensor([prompt]),
            past_key_values=cache,
            max_new_tokens=len(told),
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected = generated.sequences[0, len(prompt) :].tolist()
        for token, other, logits in zip(told, expected, generated.logits, strict=True):
            best = logits[0].topk(2).values
            if best[0] - best[1] < CLEAR:
                break
            assert token == other
            compared += 1
        assert_logprobs(model, prompt, answer, close, **reading)
    assert compared > sum(len(answer.token_ids) for answer in found) // 2


def assert_logprobs(
    model: AllMemForCausalLM, prompt: list[int], answer: Any, close: float, **reading: Any
) -> None:
    """What an answer says of its tokens is what the model says of them."""
    told = list(answer.token_ids)
    cache = AllMemCache(model.config, **reading)
    ids = torch.tensor([prompt + told[:-1]])
    logits: Tensor = model(ids, past_key_values=cache, logits_to_keep=len(told)).logits[0]
    expected = logits.float().log_softmax(-1)  # [T, V]
    for row, at in zip(expected, answer.logprobs, strict=True):
        for token, given in at.items():
            assert abs(given.logprob - float(row[token])) < close
