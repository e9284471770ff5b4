"""Many prompts, read once: what several of them begin with is read in one session and forked where
they part, so that questions about one document cost little more than one of them.

Of every prompt it gives the text that the model writes and, where a model is loaded here, how
likely given answers would have been.

Letters: T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from allmem.evaluation.grouping import common_beginning
from allmem.evaluation.model import EvaluatedModel, Prompt, Session
from allmem.prompts import plain_spans
from allmem.reading import Sampling

__all__ = ["Asked", "ask", "shared_tokens"]


@dataclass(frozen=True)
class Asked:
    """A prompt, and answers to weigh behind it."""

    prompt: Prompt
    answers: tuple[str, ...] = ()
    """The right one first; with the space that stands before them."""
    number: int = 0
    """Which random numbers it draws."""


def ask(model: EvaluatedModel, asked: Sequence[Asked], sampling: Sampling) -> list[dict[str, Any]]:
    """Answer prompts that share their beginnings.

    Returns:
        Of each ``prediction``, and ``likely``: of every answer its ``nll`` in nats, its ``tokens``
        and how many of them were the likeliest in their places (``right``).
    """
    if type(model).session is EvaluatedModel.session:
        prompts = [one.prompt for one in asked]
        completions = model.complete(prompts, sampling, [one.number for one in asked])
        return [{"prediction": completion.text} for completion in completions]
    return _Reader(model.tokenizer, asked, sampling).read(model.session())


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that are read of prompts, what they begin with in common once."""
    ordered = sorted(map(list, prompts))
    total = sum(map(len, ordered))
    return total - sum(common_beginning(left, right) for left, right in pairwise(ordered))


class _Reader:
    """Reads a tree of prompts."""

    def __init__(self, tokenizer: Any, asked: Sequence[Asked], sampling: Sampling) -> None:
        self.tokenizer, self.asked, self.sampling = tokenizer, asked, sampling
        self.ids = [one.prompt.ids or [] for one in asked]
        self.found: dict[int, dict[str, Any]] = {}

    def read(self, session: Session) -> list[dict[str, Any]]:
        self._descend(session, 0, list(range(len(self.asked))))
        return [self.found[i] for i in range(len(self.asked))]

    def _descend(self, session: Session, at: int, members: list[int]) -> None:
        """Go on with prompts that have been read up to ``at``."""
        first = self.ids[members[0]]
        common = min(common_beginning(first, self.ids[i]) for i in members)
        if common > at:
            session.read(first[at:common])
        groups: dict[int, list[int]] = {}
        for i in members:
            # Prompts that end here stand by themselves.
            key = self.ids[i][common] if len(self.ids[i]) > common else -1 - i
            groups.setdefault(key, []).append(i)
        # The longest goes on in the session itself, so that few copies are held at a time.
        ordered = sorted(groups.items(), key=lambda group: max(len(self.ids[i]) for i in group[1]))
        for number, (key, group) in enumerate(ordered, 1):
            branch = session if number == len(ordered) else session.fork()
            if key < 0:
                self.found[group[0]] = self._answer(branch, self.asked[group[0]])
            else:
                self._descend(branch, common, group)

    def _answer(self, session: Session, one: Asked) -> dict[str, Any]:
        likely = [self._weigh(session.fork(), answer) for answer in one.answers]
        sampling = replace(self.sampling, seed=one.number)
        prediction = session.write(one.prompt.max_new_tokens, one.prompt.stop, sampling)
        return {"prediction": prediction, "likely": likely}

    def _weigh(self, session: Session, answer: str) -> dict[str, Any]:
        """How likely an answer is; a space that is a token of its own does not count."""
        ids, spans = plain_spans(self.tokenizer, answer)
        losses, right = session.check(ids)  # [T], [T]
        said = [answer[a:b].strip() != "" for a, b in spans]
        counted = [i for i, counts in enumerate(said) if counts]
        return {
            "nll": float(losses[counted].sum()),
            "tokens": len(counted),
            "right": int(right[counted].sum()),
        }
