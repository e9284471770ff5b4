"""Documents are ranked by what the window loses, worked out exactly."""

from __future__ import annotations

import lzma
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import allmem
from allmem.data.selectors import rank_documents, window_loss
from allmem.errors import AllMemError
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import BASES, S, V, W


def window_model(mixers: str = "window") -> AllMemForCausalLM:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(BASES["llama"]()).double()
    chunk = 4 if mixers == "allmem" else None
    model = allmem.convert(base, window=W, sinks=S, chunk=chunk, mixers=mixers)
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            if name.endswith("alpha"):
                parameter.fill_(0.5)
    return model.eval()


def direct(model: AllMemForCausalLM, ids: Tensor, full: bool) -> float:
    """The mean loss beyond the window from the dense logits."""
    with torch.no_grad():
        logits = model(ids[None], full_attention=full, use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return float(losses[W:].mean())


@pytest.mark.parametrize("length", [W + 2, W + 3, 40, 300])
def test_losses_equal_those_of_the_dense_logits(length: int) -> None:
    model = window_model()
    ids = torch.randint(3, V, (length,))
    found = window_loss(model, ids)
    assert math.isclose(found.full, direct(model, ids, True), rel_tol=1e-5)
    assert math.isclose(found.window, direct(model, ids, False), rel_tol=1e-5)
    assert found.positions == length - W - 1
    assert math.isclose(found.ratio, math.exp(found.window - found.full))


def test_memories_are_left_out() -> None:
    ids = torch.randint(3, V, (50,))
    found = window_loss(window_model("allmem"), ids)
    expected = window_loss(window_model("window"), ids)
    assert math.isclose(found.window, expected.window, rel_tol=1e-9)


def test_only_learned_tokens_count_where_asked() -> None:
    model = window_model()
    ids = torch.randint(3, V, (40,))
    learned = torch.zeros(40, dtype=torch.bool)
    learned[[2, 30, 35]] = True
    found = window_loss(model, ids, learned=learned)
    with torch.no_grad():
        logits = model(ids[None], full_attention=True, use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert found.positions == 2
    assert math.isclose(found.full, float(losses[[29, 34]].mean()), rel_tol=1e-5)


def test_documents_come_in_order_of_their_gain_and_short_ones_not_at_all() -> None:
    model = window_model()
    documents = [torch.randint(3, V, (n,)) for n in (40, 5, 60, W + 1, 80)]
    ranked = rank_documents(model, iter(documents))
    gains = [one.gain for one in ranked]
    assert gains == sorted(gains, reverse=True)
    assert sorted(one.number for one in ranked) == [0, 2, 4]
    assert rank_documents(model, documents, keep=1) == ranked[:1]


def test_a_document_within_the_window_is_refused() -> None:
    with pytest.raises(AllMemError, match="beyond the window"):
        window_loss(window_model(), torch.randint(3, V, (W + 1,)))


@pytest.mark.slow
@pytest.mark.smollm2
def test_texts_that_come_again_rank_above_texts_that_do_not() -> None:
    from allmem.models.sources import load_base, load_tokenizer, smollm2_file

    try:
        file = smollm2_file()
    except AllMemError as error:
        pytest.skip(str(error))
    folder = Path(allmem.__file__).parent / "resources"
    prose = lzma.decompress((folder / "morris_wood_beyond_the_world_1894.txt.xz").read_bytes())
    ids = load_tokenizer(file)(prose.decode()[:30_000], return_tensors="pt").input_ids[0]
    model = allmem.convert(load_base(file), window=128, sinks=4, mixers="window", check=False)
    halves = [ids[i * 300 : i * 300 + 300] for i in range(8)]
    repeated = [torch.cat([half, half]) for half in halves[:4]]
    other = [torch.cat([halves[i], halves[(i + 1) % 4 + 4]]) for i in range(4)]
    ranked = rank_documents(model, [*repeated, *other])
    assert {one.number for one in ranked[:4]} == {0, 1, 2, 3}
    assert ranked[3].gain > ranked[4].gain + 0.5
