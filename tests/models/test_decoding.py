"""Single tokens without a decision on the CPU: compiled layers and graphs of whole steps.

A GPU captures a step; here a stand-in for the capture runs it again at every replay, as a graph
does: on the same tensors, for the same set of ending chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler
from torch._subclasses.fake_tensor import FakeTensorMode

from allmem import AllMemError
from allmem.config import WindowConfig
from allmem.mixers.layer import LayerState
from allmem.models import compiled, decoding
from allmem.models.cache import AllMemCache
from allmem.models.compiled import kind_of
from allmem.models.decoding import use_decoding
from allmem.models.layer import Call
from allmem.models.modeling import AllMemForCausalLM
from allmem.token_layout import TokenLayout
from tests.models.tiny import C, W, assert_close, logits_in_calls, read, text, tiny_model

TOKENS = 3 * W
READ = torch.tensor([2 * C, 4])
"""Tokens of two rows that are read first: their chunks end at different times."""


GREEDY: dict[str, Any] = {"max_new_tokens": 2 * C, "do_sample": False, "eos_token_id": None}


def model_of(**options: Any) -> AllMemForCausalLM:
    # A Llama: its attention computes nothing in fp32.
    return tiny_model("llama", dtype=torch.float64, **options)


@pytest.fixture(scope="module")
def model() -> AllMemForCausalLM:
    return model_of()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled, without the code that inductor would write."""
    traced = partial(compiled._compiled, backend="eager")
    monkeypatch.setattr(compiled, "_compiled", traced)


class Captures:
    """Stands in for ``decoding.capture``."""

    def __init__(self) -> None:
        self.made = 0
        self.replayed = 0

    def __call__(
        self, run: Callable[[list[LayerState]], Tensor], states: list[LayerState]
    ) -> tuple[Callable[[], None], Tensor]:
        self.made += 1
        result = run([state.clone() for state in states])
        places = [{n: t.data_ptr() for n, t in s.tensors().items()} for s in states]

        def replay() -> None:
            self.replayed += 1
            assert places == [{n: t.data_ptr() for n, t in s.tensors().items()} for s in states]
            result.copy_(run(states))

        return replay, result


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    made = Captures()
    monkeypatch.setattr(decoding, "capture", made)
    monkeypatch.setattr(decoding, "can_capture", lambda device: True)
    return made


def ragged_start(model: AllMemForCausalLM) -> AllMemCache:
    mask = (torch.arange(int(READ.max())) >= READ.max() - READ[:, None]).long()
    return read(model, text(2, int(READ.max())), attention_mask=mask)


def tokens(model: AllMemForCausalLM, how: str, cache: AllMemCache, ids: Tensor) -> Tensor:
    with use_decoding(how):
        return logits_in_calls(model, ids.split(1, 1), cache)


def assert_same_states(one: AllMemCache, other: AllMemCache, tolerance: float = 1e-9) -> None:
    assert one.seen.tolist() == other.seen.tolist()
    expected = other.tensors()
    for name, tensor in one.tensors().items():
        assert_close(tensor, expected[name], tolerance)


PATTERNS: dict[str, dict[str, Any]] = {
    "allmem": {},
    "lact": {"mixers": "lact", "mixer_options": {"lact": {"chunk": C}}},
    "linear network": {"memory": {"network": "linear", "chunk": C}},
    "low rank": {"memory": {"projections": "lowrank", "rank": 4, "chunk": C}},
    "shared": {"memory": {"projections": "shared", "rank": 4, "chunk": C}},
    "window, allmem": {"mixers": "window,allmem"},
    "two periods": {
        "mixers": "allmem,ttt_linear",
        "mixer_options": {"ttt_linear": {"mini_batch": 4}},
    },
    "titans": {"mixers": "titans", "mixer_options": {"titans": {"mini_batch": 4}}},
    "recurrences": {"mixers": "mamba2,gated_deltanet"},
}


@pytest.mark.parametrize(
    ("name", "how"),
    [*product(PATTERNS, ("compiled", "graph")), ("allmem", "compiled,graph")],
)
def test_tokens_and_states_are_those_of_eager_decoding(
    name: str, how: str, traced: None, captures: Captures
) -> None:
    model = model_of(**PATTERNS[name])
    ids = text(2, TOKENS, seed=1)
    caches = [ragged_start(model) for _ in range(2)]
    found = tokens(model, how, caches[0], ids)
    assert_close(found, tokens(model, "eager", caches[1], ids), 1e-6)
    assert_same_states(*caches)
    assert captures.replayed == (TOKENS if "graph" in how else 0)


def test_another_window_and_chunk(model: AllMemForCausalLM, traced: None) -> None:
    ids, caches = text(1, TOKENS), []
    for how in ("compiled", "eager"):
        caches.append(AllMemCache(model.config, WindowConfig(7, 1), 3))
        tokens(model, how, caches[-1], ids)
    assert_same_states(*caches)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [({}, 1), (PATTERNS["shared"], 1), (PATTERNS["window, allmem"], 2), ({"name": "smollm3"}, 2)],
)
def test_layers_that_are_alike_share_their_code(options: dict[str, Any], kinds: int) -> None:
    base = {"name": "llama", **options}
    mixers = [m for seed in (0, 1) for m in tiny_model(seed=seed, **base).mixers()]
    assert len({kind_of(mixed) for mixed in mixers}) == kinds


@pytest.mark.parametrize("own", [{"loss": "dot"}, {"residual": False}, {"clip": None}])
def test_layers_of_the_same_shapes_that_compute_something_else_do_not(own: dict[str, Any]) -> None:
    plain, other = (tiny_model("llama", memory={"chunk": C, **o}) for o in ({}, own))
    assert kind_of(plain.mixers()[0]) != kind_of(other.mixers()[0])
    wider = tiny_model("llama", window=W + 1)
    assert kind_of(plain.mixers()[0]) != kind_of(wider.mixers()[0])


def test_compiled_code(model: AllMemForCausalLM) -> None:
    """Of the compiler itself, in the two forms that a chunk needs."""
    caches = [ragged_start(model) for _ in range(2)]
    ids = text(2, C + 1, seed=1)
    found = tokens(model, "compiled", caches[0], ids)
    assert_close(found, tokens(model, "eager", caches[1], ids), 1e-6)
    assert_same_states(*caches)


def test_one_graph_for_each_set_of_ending_chunks(
    model: AllMemForCausalLM, captures: Captures
) -> None:
    cache = ragged_start(model)
    tokens(model, "graph", cache, text(2, 4 * C))
    assert captures.made == 2
    decoder = cache.decoder
    # More of the prompt, and a text from its start: the same graphs, with other states in them.
    with torch.no_grad():
        model(input_ids=text(2, 7), past_key_values=cache, use_cache=True)
    tokens(model, "graph", cache, text(2, C))
    cache.reset()
    with torch.no_grad():
        model(input_ids=text(2, 7), past_key_values=cache, use_cache=True)
    tokens(model, "graph", cache, text(2, C))
    assert cache.decoder is decoder
    assert captures.made == 2


def test_other_states_in_the_place_of_those_of_a_graph(
    model: AllMemForCausalLM, captures: Captures
) -> None:
    first, more, order = text(2, 7), text(3, 2 * C, seed=5), torch.tensor([1, 0, 1])

    def futures(how: str) -> list[Tensor]:
        cache = ragged_start(model)
        tokens(model, how, cache, first)
        fork = cache.fork()
        found = [tokens(model, how, cache, more[:2])]
        fork.batch_select_indices(order)
        found.append(tokens(model, how, fork, more))
        cache.batch_select_indices(torch.tensor([1, 0]))
        found.append(tokens(model, how, cache, more[:2]))
        return found

    for found, expected in zip(futures("graph"), futures("eager"), strict=True):
        assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("how", ["compiled", "graph"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate(
    model: AllMemForCausalLM, how: str, beams: int, traced: None, captures: Captures
) -> None:
    prompt = text(2, 9)
    found = []
    for name in (how, "eager"):
        with use_decoding(name):
            found.append(model.generate(prompt, num_beams=beams, **GREEDY))
    assert torch.equal(*found)
    assert (captures.replayed > 0) == (how == "graph")


@pytest.mark.parametrize("how", ["compiled", "graph"])
def test_states_of_an_inference_mode_outside_of_it(
    model: AllMemForCausalLM, how: str, traced: None, captures: Captures
) -> None:
    prompt, ids = text(1, 9), text(1, C)
    with torch.inference_mode():
        cache = read(model, prompt)
    found = tokens(model, how, cache, ids)
    assert_close(found, tokens(model, "eager", read(model, prompt), ids), 1e-9)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_number_of_a_step_is_read_back(name: str, captures: Captures) -> None:
    """A tensor without content cannot be: reading it is an error."""
    model = model_of(**PATTERNS[name])
    cache, ids = ragged_start(model), text(2, 1)
    # What is kept for each device is made.
    tokens(model, "graph", cache, ids)
    assert cache.decoder is not None
    periods = cache.decoder.periods
    assert bool(periods) == (name != "recurrences")
    for closing in {frozenset[int](), periods}:
        states = [state.clone() for state in cache.decoder.states]
        layout = TokenLayout.next_of(cache.seen, closing=closing)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            model.base(input_ids=ids, use_cache=False, allmem_call=Call(layout, states))


@pytest.mark.parametrize(
    ("mixers", "kind"),
    [
        ("full,allmem", "FullMixer"),
        ("allmem,ahn_deltanet", "EvictedMixer"),
        ("ladder", "LadderMixer"),
    ],
)
def test_what_decides_on_the_cpu_is_read_eagerly_and_says_so(mixers: str, kind: str) -> None:
    model = model_of(mixers=mixers)
    decoding._say.cache_clear()
    ids = text(1, C)
    with pytest.warns(RuntimeWarning, match=rf"layer \d \(.*{kind}.*\) decides on the CPU"):
        found = tokens(model, "compiled", AllMemCache(model.config), ids)
    assert torch.equal(found, tokens(model, "eager", AllMemCache(model.config), ids))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens(model, "compiled", AllMemCache(model.config), ids)


def test_training_and_prompts_are_left_alone(
    model: AllMemForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_compiled", lambda *_: pytest.fail("compiled"))
    with use_decoding("compiled"):
        cache = read(model, text(1, 9))
        model(input_ids=text(1, 1), past_key_values=cache, use_cache=True)  # with gradients
        with torch.no_grad():
            model(input_ids=text(1, 1), full_attention=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_compiler(
    wrapped: bool, model: AllMemForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_it(*_: Any) -> Any:
        try:
            raise InvalidCxxCompiler
        except InvalidCxxCompiler as error:
            if wrapped:
                raise RuntimeError("the backend failed") from error
            raise

    monkeypatch.setattr(compiled, "_compiled", lambda *_: compile_it)
    with pytest.raises(AllMemError, match=r"needs a C\+\+ compiler on a CPU.*install g\+\+"):
        tokens(model, "compiled", read(model, text(1, 9)), text(1, 1))


def test_a_graph_without_a_gpu(model: AllMemForCausalLM) -> None:
    cache = read(model, text(1, 9))
    with pytest.raises(AllMemError, match="needs a CUDA device, and the input is on cpu"):
        tokens(model, "graph", cache, text(1, 1))


def test_unknown_names(monkeypatch: pytest.MonkeyPatch, model: AllMemForCausalLM) -> None:
    with pytest.raises(AllMemError, match=r"unknown decoding 'compield'.*compiled"):
        use_decoding("compield").__enter__()
    monkeypatch.setenv(decoding.VARIABLE, "grph")
    with pytest.raises(AllMemError, match=r"unknown decoding 'grph'.*graph"):
        read(model, text(1, 1), past_key_values=read(model, text(1, 9)))


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["compiled", "graph", "compiled,graph"])
def test_on_a_gpu(how: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = model_of().to("cuda", torch.float32)
    cache = read(model, text(2, 9).to("cuda"))
    twin, ids = cache.fork(), text(2, 3 * C).to("cuda")
    found = tokens(model, how, cache, ids)
    assert_close(found, tokens(model, "eager", twin, ids), 1e-3)
    assert_same_states(cache, twin, 1e-3)
