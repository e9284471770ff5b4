"""A loaded model under test: batched, with shared beginnings, and what each of them is alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.evaluation import budget, feeding, likelihood, local, session
from allmem.evaluation.local import LocalModel
from allmem.evaluation.model import Completion
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from tests.evaluation.answering import (
    LetterTokenizer,
    converted,
    plain,
    prompts_of,
    random_ids,
    silent,
)
from tests.models.tiny import EOS, C, W

GREEDY, DRAWN = Sampling(seed=0), Sampling(temperature=1.0, top_p=0.9, top_k=20, seed=0)
MODELS: dict[str, Callable[[], LocalModel]] = {
    "converted": converted,
    "window": lambda: converted("window"),
    "unwritten": lambda: converted("unwritten"),
    "plain": plain,
    "plain-sliding": lambda: plain("mistral-wider"),
    "plain-some-sliding": lambda: plain("qwen3-local-first"),
}
SHARED, OWN = random_ids(40), [random_ids(n, seed=n) for n in (9, 1, 17, 4)]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    # So that a few dozen tokens are shared, and read in several pieces.
    monkeypatch.setattr(local, "SHARED", 16)
    monkeypatch.setattr(feeding, "PIECE", 32)
    monkeypatch.setattr(likelihood, "CONTEXT_SLOTS", 120)
    monkeypatch.setattr(likelihood, "LOGIT_SLOTS", 16)
    monkeypatch.setattr(session, "BLOCK", 7)
    return MODELS[request.param]()


def alone(model: LocalModel, prompts: list[local.Prompt], how: Sampling) -> list[Completion]:
    return [model.complete([p], how, [i])[0] for i, p in enumerate(prompts)]


@pytest.mark.parametrize("how", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_batch_answers_as_each_prompt_alone(model: LocalModel, how: Sampling) -> None:
    """Some of the prompts share a beginning, others do not, and one is another's beginning."""
    ids = [SHARED + own for own in OWN] + [random_ids(n, seed=n) for n in (50, 3, 31)]
    prompts = prompts_of([*ids, SHARED + OWN[0][:4]])
    together = model.complete(prompts, how, range(len(prompts)))
    assert together == alone(model, prompts, how)
    assert len({answer.text for answer in together}) > len(prompts) // 2
    assert [answer.prompt_tokens for answer in together] == [len(p.ids or ()) for p in prompts]


def test_shared_beginnings_are_read_once(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    usual = feeding.Feed.read

    def counted(feed: feeding.Feed, ids: torch.Tensor, *rest: object, **more: object) -> object:
        nonlocal read
        read += ids.numel()
        return usual(feed, ids, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(feeding.Feed, "read", counted)
    prompts = prompts_of([SHARED + own for own in OWN], new=1)
    model.complete(prompts, GREEDY, range(4))
    once, each = len(SHARED) + 4 * 17, 4 * (len(SHARED) + 17)
    # Layers that see a number of slots would take padding for text.
    assert read == (each if feeding.allows_holes(model.opened) is False else once)


def test_plain_answers_are_those_of_transformers() -> None:
    model = plain()
    ids = random_ids(30)
    out = model.opened.model.generate(
        torch.tensor([ids]), max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    said = LetterTokenizer().decode(out[0, 30:].tolist(), skip_special_tokens=True)
    assert model.complete(prompts_of([ids]), GREEDY, [0])[0].text == said


def test_a_stop_text_ends_an_answer_wherever_it_falls(model: LocalModel) -> None:
    prompts = prompts_of([SHARED + own for own in OWN])
    free = model.complete(prompts, GREEDY, range(4))
    longest = max((answer.text for answer in free), key=len)
    for start in (0, 2, len(longest) - 2):
        stop = longest[start : start + 2]
        stopped = model.complete(
            prompts_of([p.ids or [] for p in prompts], stop=(stop, "??")), GREEDY, range(4)
        )
        for one, other in zip(free, stopped, strict=True):
            assert other.text == one.text.partition(stop)[0]
            assert other.finished == (one.finished or stop in one.text)
            assert other.new_tokens is not None
            assert one.new_tokens is not None
            assert other.new_tokens <= one.new_tokens
        assert [answer.text for answer in stopped] != [answer.text for answer in free]


def test_answers_end_at_their_own_limits(model: LocalModel) -> None:
    long, short = prompts_of([random_ids(20)], new=9)[0], prompts_of([random_ids(20)], new=4)[0]
    whole, part = model.complete([long, short], GREEDY, [0, 1])
    assert whole.text.startswith(part.text)
    assert whole.new_tokens is not None
    assert part.new_tokens == min(4, whole.new_tokens)
    assert part.finished == (whole.new_tokens < 4)


def test_the_models_own_end_ends_an_answer(model: LocalModel) -> None:
    prompts = prompts_of([SHARED + own for own in OWN], new=20)
    free = model.complete(prompts, GREEDY, range(4))
    end = ord(max((answer.text for answer in free), key=len)[1]) - ord("A")
    model._stop = [EOS, end]
    for one, other in zip(free, model.complete(prompts, GREEDY, range(4)), strict=True):
        letter = LetterTokenizer().letter(end)
        assert other.text == one.text.partition(letter)[0]
        assert other.finished == (one.finished or letter in one.text)


def test_an_answer_that_has_to_say_something_does(model: LocalModel) -> None:
    ids = [SHARED + own for own in OWN]
    first = model.complete(prompts_of(ids, new=1), GREEDY, range(4))
    letter = max((answer.text for answer in first), key=len)
    assert letter
    prompts = [dataclasses.replace(p, ends_at=letter) for p in prompts_of(ids, new=20)]
    for one, other in zip(first, model.complete(prompts, GREEDY, range(4)), strict=True):
        # It ends there like at the model's own end, only not at once.
        assert other.new_tokens
        assert letter not in other.text
        assert one.text in ("", letter) or other.text.startswith(one.text)


def direct(model: LocalModel, context: list[int], said: list[int]) -> tuple[float, bool]:
    """A likelihood from all logits of one call."""
    ids = torch.tensor([context + said])
    feed = model.feed()
    with feed.variant(feed.model), torch.no_grad():
        logits = feed.model(input_ids=ids).logits[0, len(context) - 1 : -1].float()
    chances = logits.log_softmax(-1)
    targets = torch.tensor(said)
    total = float(chances.double().gather(1, targets[:, None]).sum())
    return total, bool((chances.argmax(-1) == targets).all())


def test_likelihoods_are_those_of_one_call(model: LocalModel) -> None:
    contexts = [SHARED, SHARED, SHARED[:13], [5], [5], SHARED + OWN[0]]
    said = [OWN[2], OWN[1], OWN[0], OWN[3], OWN[2], [7]]
    # A continuation that is the likeliest at every token.
    likeliest = model.complete(prompts_of([SHARED], new=3), GREEDY, [0])[0].text
    contexts.append(SHARED)
    said.append(LetterTokenizer()(likeliest)["input_ids"])
    found = model.likelihoods(list(zip(contexts, said, strict=True)))
    for one, context, ids in zip(found, contexts, said, strict=True):
        total, greedy = direct(model, context, ids)
        assert one.log_probability == pytest.approx(total, rel=1e-5)
        assert one.greedy == greedy
        assert one.tokens == len(ids)
    assert found[-1].greedy
    assert not found[0].greedy


def test_nothing_is_less_likely_than_certain(model: LocalModel) -> None:
    found = model.likelihoods([(SHARED, []), (SHARED, [4])])
    assert (found[0].log_probability, found[0].tokens, found[0].greedy) == (0.0, 0, True)
    assert model.likelihoods([]) == []
    with pytest.raises(AllMemError, match="no token"):
        model.likelihoods([([], [4])])


class Held:
    """What feeds hold after every call, and for how many texts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most: dict[int, int] = {}
        usual = feeding.Feed.read

        def read(feed: feeding.Feed, ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
            found = usual(feed, ids, *rest, **more)
            self.most[len(ids)] = max(self.most.get(len(ids), 0), feed.nbytes)
            return found

        monkeypatch.setattr(feeding.Feed, "read", read)


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_a_small_budget_changes_no_answer(
    texts: int, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [SHARED + own for own in OWN] + [random_ids(n, seed=n) for n in (50, 3, 31)]
    prompts = prompts_of(ids)
    whole = model.complete(prompts, GREEDY, range(len(prompts)))
    model.budget = texts * model._of_text(50 + 9) if texts > 1 else 0
    held = Held(monkeypatch)
    assert model.complete(prompts, GREEDY, range(len(prompts))) == whole
    # A batch of texts that are shorter than the longest one may hold more of them.
    assert all(size <= model.budget for rows, size in held.most.items() if rows > 1)
    together = feeding.allows_padding(model.opened) and texts > 1
    assert (max(held.most) > 1) == together


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_a_small_budget_changes_no_likelihood(
    texts: int, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One context has more continuations than there may be copies of it."""
    contexts = [SHARED] * 5 + [SHARED[:13], [5], [5], SHARED + OWN[0], random_ids(45)]
    said = [random_ids(1 + n % 4, seed=n) for n in range(len(contexts))]
    pairs = list(zip(contexts, said, strict=True))
    whole = model.likelihoods(pairs)
    model.budget = texts * model._of_text(49 + 4) if texts > 1 else 0
    held = Held(monkeypatch)
    for one, other in zip(model.likelihoods(pairs), whole, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-9)
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)
    assert all(size <= model.budget for rows, size in held.most.items() if rows > 1)
    assert (max(held.most) > 1) == (texts > 1)


@pytest.mark.parametrize(
    "name", [*MODELS, "other-window", "other-window-context", "full-below-memory", "gemma3"]
)
def test_bytes_of_a_text_are_what_is_held(name: str) -> None:
    if name.startswith("other-window"):
        context: dict[str, Any] = {
            "mixers": "gla",
            "mixer_options": {"gla": {"fusion": "context"}},
        }
        inner: Any = converted(**context if "context" in name else {}).opened.model
        chunk = None if "context" in name else C
        opened = OpenedModel(inner, LetterTokenizer(), WindowConfig(30, 2), chunk)
        model = LocalModel(opened, name)
    elif name == "full-below-memory":
        model = converted(mixers=["full", "allmem"])
    else:
        model = MODELS[name]() if name in MODELS else plain(name)
    of_text = model._of_text
    for tokens in (1, 7, 50):
        feed = model.feed()
        feed.read(torch.tensor([random_ids(tokens)]))
        slack = 0
        if not feeding.allows_holes(model.opened):
            # Such layers drop the token that the next one would not see.
            slack = of_text(2) - of_text(1)
        assert feed.nbytes <= of_text(tokens) <= feed.nbytes + slack


def test_what_is_free_is_known_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget.free_bytes(torch.device("cpu")) == budget.CPU_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500)
    assert budget.free_bytes(torch.device("cuda")) == 1200 * budget.SHARE


def test_a_batch_is_as_wide_as_its_longest_prompt_and_then_its_longest_answer() -> None:
    sizes = [(10, 1), (10, 1), (1, 10), (1, 10), (1, 1), (99, 99), (1, 1)]
    parts = budget.Budget(40, lambda tokens: tokens).parts(sizes)
    assert parts == [[0, 1], [2, 3, 4], [5], [6]]


def test_a_session_s_losses_are_those_of_one_call(model: LocalModel) -> None:
    text = random_ids(61)
    reader = model.session()
    losses = torch.cat([reader.losses(text[:20]), reader.losses([]), reader.losses(text[20:])])
    assert math.isnan(losses[0])
    assert losses.dtype == torch.float32
    for place in (1, 19, 20, 21, 60):
        total, _ = direct(model, text[:place], text[place : place + 1])
        assert float(losses[place]) == pytest.approx(-total, rel=1e-4)
    assert reader.tokens == 61


def test_a_session_writes_what_is_thereby_read(model: LocalModel) -> None:
    text = random_ids(33)
    reader = model.session()
    reader.read(text[:30])
    reader.read(text[30:])
    twin = reader.fork()
    expected = model.complete(prompts_of([text], new=6), GREEDY, [0])[0].text
    assert reader.write(6) == expected
    assert reader.tokens == 33 + len(expected)
    # The copy knows nothing of it.
    assert twin.tokens == 33
    ids = LetterTokenizer()(expected)["input_ids"]
    twin.read(ids)
    torch.testing.assert_close(reader.losses([9, 8]), twin.losses([9, 8]))
    assert reader.nbytes == twin.nbytes > 0


def test_a_session_stops_at_a_text_and_at_the_model_s_end(model: LocalModel) -> None:
    reader = model.session()
    reader.read(random_ids(33))
    whole = reader.fork().write(6)
    assert reader.fork().write(6, stop=[whole[2:4]]) == whole[: whole.index(whole[2:4])]
    reader._stop = [ord(whole[1]) - ord("A")]  # type: ignore[attr-defined]
    before = reader.tokens
    assert reader.write(6) == whole[: whole.index(whole[1])]
    assert reader.tokens == before + whole.index(whole[1])
    with pytest.raises(AllMemError, match="nothing was read"):
        model.session().write(3)


def test_readers_differ_beyond_the_window() -> None:
    text = random_ids(W + 30)
    losses = {
        name: MODELS[name]().session().losses(text) for name in ("converted", "window", "unwritten")
    }
    for name in ("window", "unwritten"):
        assert (losses["converted"] - losses[name])[W:].abs().max() > 1e-3
    assert (losses["unwritten"] - losses["window"])[W:].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "phi3"])
def test_a_silent_memory_whose_window_covers_all_answers_as_the_teacher(name: str) -> None:
    """Answer for answer, and likelihood for likelihood."""
    teacher, student = plain(name), silent(64, name)
    prompts = prompts_of([SHARED + own for own in OWN])
    answers = teacher.complete(prompts, GREEDY, range(4))
    assert [a.text for a in student.complete(prompts, GREEDY, range(4))] == [
        a.text for a in answers
    ]
    pairs = [(SHARED, own) for own in OWN]
    for one, other in zip(teacher.likelihoods(pairs), student.likelihoods(pairs), strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-6)
    narrow = silent(W, name).complete(prompts, GREEDY, range(4))
    assert [a.text for a in narrow] != [a.text for a in answers]


def test_what_decides_answers_is_in_the_identity() -> None:
    identities = [MODELS[name]().identity() for name in MODELS]
    identities += [plain(seed=1).identity(), converted(window=20, sinks=2).identity()]
    assert len({str(identity) for identity in identities}) == len(identities)
    assert converted().identity() == converted().identity()


def test_refusals() -> None:
    with pytest.raises(AllMemError, match="did you mean 'window'"):
        converted("windows")
    with pytest.raises(AllMemError, match="not converted"):
        LocalModel(plain().opened, "plain", "window")
    with pytest.raises(AllMemError, match="no tokens"):
        plain().complete(prompts_of([[]]), GREEDY, [0])
    with pytest.raises(AllMemError, match="max_new_tokens = 0"):
        plain().complete(prompts_of([[4]], new=0), GREEDY, [0])
