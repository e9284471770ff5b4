"""Questions by turn: does a memory wear out by being asked?

A document with facts is read once. Then one question after another is put to the same state, in a
conversation that goes on and is read like everything else; and each of them also to a copy of the
state as it was right after the document. What the copies know better, the turns between have cost.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel, Session
from allmem.evaluation.probes.base import BETWEEN, measuring_tokenizer
from allmem.evaluation.probes.cast import Cast, Fact
from allmem.evaluation.probes.composing import Plant, Sight, insert
from allmem.evaluation.probes.filler import Filler, load_filler
from allmem.evaluation.probes.scoring import place_of
from allmem.evaluation.probes.session_task import SessionTask
from allmem.evaluation.task import Example, Part, Row, Setting, Task
from allmem.evaluation.thinking import after_thinking
from allmem.prompts import ChatPrompts, DocumentPrompt, plain_ids, plain_spans

__all__ = ["TASKS", "Document", "Turns", "make_document"]

LENGTH, QUICK_LENGTH = 16_384, 4096
DOCUMENTS, QUICK_DOCUMENTS = 8, 3
TURNS, QUICK_TURNS = 10, 4
LANGUAGES, QUICK_LANGUAGES = ("en", "zh"), ("en",)
NEW_TOKENS = 12
"""Of an answer that is begun already."""
STOP = ("\n", ".", "。")
"""No value holds any of these."""
FACTS_UP_TO = 0.5
"""Facts stand in this first share of the document; the rest hides them from the window."""
BEFORE_FACTS = 32
"""One token in so many stands before the first fact, or more where there are many sinks."""
MARGIN = 64
"""Tokens by which a fact may miss its place."""


@dataclass(frozen=True)
class Document:
    """A text that states facts, and what is asked about it."""

    language: str
    text: str
    facts: Sequence[Fact]
    """One value each, in the order in which they are asked for."""
    first: int
    """Tokens before the first fact."""
    distance: int
    """Tokens behind the last one."""


class Turns(SessionTask):
    """``probes/turns``: right answers by turn, from one state that is asked again and again."""

    name = "probes/turns"
    metric = "exact"
    slow_to_make = True

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        tokenizer, sight = measuring_tokenizer(model), Sight.of(model, setting)
        quick = setting.quick
        # The half behind the facts covers what is seen.
        shortest = 2 * (sight.horizon + sight.sinks + MARGIN)
        lengths = setting.lengths or (max(QUICK_LENGTH if quick else LENGTH, shortest),)
        turns = QUICK_TURNS if quick else TURNS
        count = setting.limit or (QUICK_DOCUMENTS if quick else DOCUMENTS)
        for language in QUICK_LANGUAGES if quick else LANGUAGES:
            filler = load_filler(tokenizer, language, setting)
            for length, n in itertools.product(lengths, range(count)):
                rng = random.Random(f"{setting.seed} turns {language} {length} {n}")
                made = make_document(filler, rng, language, length, turns, sight.sinks)
                if sight.horizon and not sight.hides(made.first, made.distance):
                    raise AllMemError(
                        f"probes/turns: length = {length} does not put facts out of the sight of "
                        f"{sight.horizon} tokens; give at least {shortest}"
                    )
                yield Example(
                    f"{language}-{length}-{n}",
                    made,
                    {"values": [fact.values[0] for fact in made.facts]},
                    {"length": length, "language": language},
                )

    def measure(self, model: EvaluatedModel, example: Example, setting: Setting) -> Row:
        return _converse(model, example.ask, setting)

    def parts(self, row: Row) -> list[Part]:
        found = []
        pairs = zip(row["reference"]["values"], row["turns"], strict=True)
        for turn, (value, one) in enumerate(pairs, 1):
            reused, copy = one["reused"], one["copy"]
            scores = {
                "exact": _holds(reused["prediction"], value),
                "copy_exact": _holds(copy["prediction"], value),
                "answer_nll": reused["nll"],
                "copy_answer_nll": copy["nll"],
                "worn_nll": reused["nll"] - copy["nll"],
            }
            found.append(Part(scores, {**row["cell"], "turn": turn}))
        return found


def make_document(
    filler: Filler, rng: random.Random, language: str, length: int, count: int, sinks: int
) -> Document:
    """A document of about ``length`` tokens that states ``count`` facts in its first half, behind
    the sinks."""
    cast = Cast(rng, language, filler)
    facts = [cast.fact() for _ in range(count)]
    sentences = [fact.stated[0] for fact in facts]
    between = BETWEEN[language]
    used = sum(len(plain_ids(filler.tokenizer, between + sentence)) for sentence in sentences)
    budget, before = length - used, max(length // BEFORE_FACTS, sinks + MARGIN)
    last = int(FACTS_UP_TO * length) - used
    if last < before + count:
        raise AllMemError(
            f"probes/turns: length = {length} has no room for {count} facts and prose between "
            "them; choose a greater length"
        )
    pieces = filler.excerpt(rng.randrange(len(filler.pieces)), budget)
    plants = [Plant(one, (i + 1) / count) for i, one in enumerate(sentences)]
    text = insert(pieces, plants, before, last, between)
    _, spans = plain_spans(filler.tokenizer, text)
    begin, end = text.index(sentences[0]), text.index(sentences[-1]) + len(sentences[-1])
    first = sum(span[1] <= begin for span in spans)
    distance = sum(span[0] >= end for span in spans)
    return Document(language, text, rng.sample(facts, count), first, distance)


def _converse(model: EvaluatedModel, document: Document, setting: Setting) -> Row:
    tokenizer = measuring_tokenizer(model)
    prompt = DocumentPrompt(tokenizer)
    chat = ChatPrompts(tokenizer) if tokenizer.chat_template else None
    kept = model.session()
    kept.read(prompt.document(document.text))
    going = kept.fork()
    turns = []
    ask = functools.partial(
        _ask, space=BETWEEN[document.language], tokenizer=tokenizer, setting=setting
    )
    for turn, fact in enumerate(document.facts):
        asks = fact.subject.asks.format(name=fact.name)
        alone = prompt.question(asks)
        following = alone if turn == 0 or chat is None else chat.next(asks)
        reused = ask(going, following, fact)
        # The first turn is the same for both.
        copy = reused if turn == 0 else ask(kept.fork(), alone, fact)
        turns.append({"reused": reused, "copy": copy})
    return {
        "turns": turns,
        "distance": document.distance,
        "prompt_tokens": kept.tokens,
        "read": going.tokens,
    }


def _holds(prediction: str, value: str) -> float:
    """Whether an answer holds a value, as a score."""
    return float(place_of(value, after_thinking(prediction)) is not None)


def _ask(
    session: Session,
    question: Sequence[int],
    fact: Fact,
    space: str,
    tokenizer: Any,
    setting: Setting,
) -> dict[str, Any]:
    """Ask a session, which goes on, and begin the answer: how it is ended, and how likely the value
    was there, in nats per token.

    Args:
        space: what stands between two words.
    """
    # Without a template the answer continues a line.
    lead = "" if tokenizer.chat_template else space
    session.read([*question, *plain_ids(tokenizer, lead + fact.prefix)])
    answer = space + fact.values[0]
    ids, spans = plain_spans(tokenizer, answer)
    losses = session.fork().losses(ids).double()  # [T]
    # A space that is a token of its own does not count.
    said = [i for i, (begin, end) in enumerate(spans) if answer[begin:end].strip()]
    prediction = session.write(NEW_TOKENS, STOP, setting.sampling)
    return {"prediction": prediction, "nll": float(losses[said].mean())}


TASKS: dict[str, Callable[[], Task]] = {"probes/turns": Turns}
