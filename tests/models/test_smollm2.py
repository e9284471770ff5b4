"""The packaged SmolLM2: what half precision costs with a memory and without one."""

from __future__ import annotations

import copy
import lzma
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import allmem
from allmem import AllMemError
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_base, load_tokenizer, smollm2_file
from tests.models.tiny import logits

pytestmark = pytest.mark.smollm2
WINDOW, SINKS, CHUNK = 256, 8, 128
BLOCK = 512


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    try:
        return load_base(smollm2_file())
    except AllMemError as error:
        pytest.skip(str(error))


def book(length: int) -> Tensor:
    """[1, T], the beginning of the novel that the package ships."""
    folder = Path(allmem.__file__).parent / "resources"
    packed = (folder / "morris_wood_beyond_the_world_1894.txt.xz").read_bytes()
    prose = lzma.decompress(packed).decode()
    ids = load_tokenizer(smollm2_file())(prose[: 8 * length], return_tensors="pt").input_ids
    assert ids.shape[1] >= length
    return ids[:, :length]


def model_of(base: PreTrainedModel, mixers: str) -> AllMemForCausalLM:
    chunk = CHUNK if mixers == "allmem" else None
    model = allmem.convert(
        copy.deepcopy(base),
        window=WINDOW,
        sinks=SINKS,
        chunk=chunk,
        mixers=mixers,
        check=False,
    )
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            if name.endswith("alpha"):
                parameter.fill_(0.02)
    return model


def rounding(model: AllMemForCausalLM, ids: Tensor) -> float:
    """Mean KL divergence from fp32 to bf16, in nats a token. The model is in bf16 afterwards."""
    exact = predictions(model, ids)
    rounded = predictions(model.to(torch.bfloat16), ids)
    divergence = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(exact, rounded, strict=True))
    return divergence / sum(len(p) for p in exact)


def predictions(model: AllMemForCausalLM, ids: Tensor) -> list[Tensor]:
    """Log probabilities, block by block; every eighth slot, or they would fill gigabytes."""
    cache = allmem.AllMemCache(model.config)
    return [
        logits(model, piece, past_key_values=cache)[0, ::8].float().log_softmax(-1)
        for piece in ids.split(BLOCK, 1)
    ]


SLOW = (pytest.mark.slow, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(1024, id="1k"),
        pytest.param(8192, marks=SLOW, id="8k"),
    ],
)
def test_half_precision_costs_a_memory_little_more_than_a_window(
    base: PreTrainedModel, length: int
) -> None:
    ids = book(length)
    window = rounding(model_of(base, "window"), ids)
    assert 0 < rounding(model_of(base, "allmem"), ids) <= 1.5 * window
