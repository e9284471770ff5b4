"""The causal audit: is it the memory that helps, and with which tokens?

A text is read up to a place, and then once with the memory that it left (intact), once with the
learned start in its place (reset), once with its rows in disorder (shuffled), and once with the
memory that another book left (swapped). The window is the same in all of them. How much worse the
text goes on says what the memory was good for: where only the memory can know, as in words that
are older than the window, another book's memory must cost something.

Letters: T tokens after the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from torch import Tensor

from allmem.errors import AllMemError
from allmem.evaluation.local import LocalModel
from allmem.evaluation.model import EvaluatedModel, Session
from allmem.evaluation.probes.base import measuring_tokenizer
from allmem.evaluation.probes.books import Stretch, other_stretches, stretches
from allmem.evaluation.probes.intervention import intact, replaced, shuffled
from allmem.evaluation.probes.session_task import SessionTask
from allmem.evaluation.probes.words import Sort, encode_with_sorts
from allmem.evaluation.session import LocalSession
from allmem.evaluation.task import Example, Part, Row, Setting, Task
from allmem.models.cache import AllMemCache
from allmem.opening import OpenedModel

__all__ = ["TASKS", "Audit"]

LENGTH, QUICK_LENGTH = 16_384, 3072
AHEAD = 2
"""Windows that are read on after the place, at most: in the first, attention still sees some of
what is before it."""
LARGEST_SHARE = 3
"""At most one token in so many is read after the place."""
VARIANTS = ("reset", "shuffled", "swapped")


class Audit(SessionTask):
    """``probes/audit``: nats per token that are lost with another memory, by sort of token."""

    name = "probes/audit"
    metric = "swapped"
    scale = 1.0
    higher_is_better = True

    def refuses(self, model: EvaluatedModel) -> str | None:
        opened = model.opened if isinstance(model, LocalModel) else None
        if not isinstance(model, LocalModel) or not isinstance(opened, OpenedModel):
            return "only a converted model that is loaded here has memories to exchange"
        layers = sorted(set(opened.model.config.layer_names))
        if "allmem" not in layers or model.reader == "window":
            return (
                f"it reads without an allmem memory (reader {model.reader}, layers "
                f"{', '.join(layers)})"
            )
        return None

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        tokenizer, sizes = measuring_tokenizer(model), _Sizes.of(model)
        length = max(setting.lengths, default=QUICK_LENGTH if setting.quick else LENGTH)
        long_enough = (
            stretch
            for stretch in stretches(setting, length)
            if sizes.place(len(stretch.ids(tokenizer, length))) > 0
        )
        # One more than is asked for, to swap with.
        texts = list(islice(long_enough, None if setting.limit is None else setting.limit + 1))
        if not texts:
            raise AllMemError(
                f"the causal audit needs texts of at least {sizes.shortest} tokens for this model "
                f"(chunk {sizes.chunk}), and reads {length}; give longer ones, or another length"
            )
        pairs = zip(texts, _partners(texts, length), strict=True)
        for text, other in islice(pairs, setting.limit):
            reference = {"book": text.book, "other": other.id, "length": length}
            yield Example(f"{text.id}-{length}", (text, other), reference)

    def parts(self, row: Row) -> list[Part]:
        found = []
        for one in row["sums"]:
            tokens = one["count"]
            scores = {name: (one[name] - one["intact"]) / tokens for name in VARIANTS}
            cell = {key: one[key] for key in ("windows", "kind", "seen") if one[key] is not None}
            scores["intact_nll"] = one["intact"] / tokens
            found.append(Part(scores, cell, weight=tokens))
        return found

    def measure(self, model: EvaluatedModel, example: Example, setting: Setting) -> Row:
        sizes = _Sizes.of(model)
        text, other = example.ask
        ids, sorts = encode_with_sorts(
            measuring_tokenizer(model), text.text, sizes.window, sizes.sinks
        )
        ids = ids[: example.reference["length"]]
        place = sizes.place(len(ids))
        session = model.session()
        session.read(ids[:place])
        losses = {}
        for name, cache in _variants(model, session, place, other, example.number(setting.seed)):
            reader = session.fork()
            assert isinstance(reader, LocalSession)
            reader.cache = cache
            # The first token was predicted before the memory was exchanged.
            losses[name] = reader.losses(ids[place:])[1:].double()  # [T - 1]
        sums = _sums(losses, sorts[place + 1 : len(ids)], sizes.window)
        return {"sums": sums, "place": place, "prompt_tokens": len(ids)}


@dataclass(frozen=True)
class _Sizes:
    """Of a converted model, as it reads."""

    window: int
    sinks: int
    chunk: int

    @classmethod
    def of(cls, model: EvaluatedModel) -> _Sizes:
        opened = _opened(model)
        config = opened.model.config
        window, chunk = opened.window or config.window_config, opened.chunk or config.chunk
        assert chunk is not None
        return cls(window.window, window.sinks, chunk)

    def place(self, tokens: int) -> int:
        """Where the memory of a text of so many tokens is exchanged: at the border of a chunk, so
        that no open one is lost; 0 if the text is too short."""
        ahead = min(AHEAD * self.window, tokens // LARGEST_SHARE)
        return (tokens - ahead) // self.chunk * self.chunk if ahead > 1 else 0

    @property
    def shortest(self) -> int:
        """Tokens of the shortest text that has a place."""
        return next(n for n in count(self.chunk) if self.place(n))


def _variants(
    model: EvaluatedModel, session: Session, place: int, other: Stretch, seed: int
) -> Iterator[tuple[str, AllMemCache]]:
    """What the session remembers, as it is and with other memories, one at a time."""
    inner, here = _opened(model).model, _cache(session)
    yield "intact", intact(here)
    yield "reset", replaced(here, inner.init_states(1, inner.device, here.window, here.chunk))
    yield "shuffled", shuffled(here, seed)
    stranger, chunk = model.session(), _Sizes.of(model).chunk
    ids = other.ids(measuring_tokenizer(model), place)
    stranger.read(ids[: len(ids) // chunk * chunk])
    yield "swapped", replaced(here, _cache(stranger).states or [])


def _sums(losses: dict[str, Tensor], sorts: Sequence[Sort], window: int) -> list[dict[str, Any]]:
    """Sums of losses by sort of token and windows from the place, and how many tokens they are.

    Args:
        losses: by variant, [T - 1] each, from the second token after the place on.
    """
    places: dict[tuple[int, Sort], list[int]] = {}
    for i, sort in enumerate(sorts):
        places.setdefault(((i + 1) // window + 1, sort), []).append(i)
    return [
        {
            "windows": windows,
            "kind": sort.kind,
            "seen": sort.seen,
            "count": len(which),
            **{name: float(values[which].sum()) for name, values in losses.items()},
        }
        for (windows, sort), which in places.items()
    ]


def _partners(texts: Sequence[Stretch], length: int) -> list[Stretch]:
    """For every text the next one that is from another book."""
    partners = []
    strange: list[Stretch] = []
    for i, text in enumerate(texts):
        others = [one for one in (*texts[i + 1 :], *texts[:i]) if one.book != text.book]
        if not others:
            strange = strange or list(other_stretches(length))
            others = [strange[i % len(strange)]]
        partners.append(others[0])
    return partners


def _opened(model: EvaluatedModel) -> OpenedModel:
    """The model itself, which does not refuse."""
    opened = model.opened if isinstance(model, LocalModel) else None
    assert isinstance(opened, OpenedModel)
    return opened


def _cache(session: Session) -> AllMemCache:
    assert isinstance(session, LocalSession)
    assert isinstance(session.cache, AllMemCache)
    return session.cache


TASKS: dict[str, Callable[[], Task]] = {"probes/audit": Audit}
