"""The search behind ``allmem.mixers.matching``: whole numbers at which two counts are right.

The bytes of a state grow with each of its sizes, parameters with the rank of the projections; how,
only the mixer knows. So sizes are solved for one after another by secants: for a leading size the
second one that gives the bytes, and for both the rank that gives the parameters; once more with
that rank where the state grows with it too. Where there is no rank, sizes of equal bytes are tried
in several proportions, since wide and narrow differ in parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Attempt", "SizeSearch", "Sizes"]

Sizes = dict[str, Any]
SKEWS = (0.8, 1.25, 0.5, 2.0)
"""By how much the leading size may differ from its proportion."""
CLOSE = 0.25
"""Share of the limits at which a search has found enough."""
PULL = 0.2
"""Score of doubling a proportion: of sizes about as good the less distorted are better."""
STEPS = 12
ROUNDS = 4
"""In which the rank that was found is that of which the state's sizes are solved for."""
NEAR = (0, 1, -1, 2, -2, 3, -3)


class Attempt(Protocol):
    """What came of some sizes."""

    @property
    def sizes(self) -> Sizes: ...
    @property
    def parameter_difference(self) -> float: ...
    @property
    def state_difference(self) -> float: ...


@dataclass
class SizeSearch:
    """Tries sizes.

    Args:
        attempt: what comes of sizes; ``None`` if they do not fit together.
        rate: how far an attempt is from what is wanted, 1 at the limit.
        form: what all sizes that are tried have in common.
        start: the sizes of the state as they are without a wish, the leading one first.
        ranks: sizes that decide the parameters beside them; all get the same number.
        compares: whether parameters matter.
    """

    attempt: Callable[[Sizes], Any]
    rate: Callable[[Any], float]
    form: Sizes
    start: Sizes
    ranks: Sequence[str]
    compares: bool
    best: Any = field(default=None, init=False)
    best_score: float = field(default=math.inf, init=False)

    def run(self) -> Any:
        """The best attempt; ``None`` if no sizes fit together."""
        for _ in range(ROUNDS):
            for found in self._attempts():
                if found is not None and self._score(found) < self.best_score:
                    self.best, self.best_score = found, self._score(found)
                if self.best_score <= CLOSE:
                    break
            if not self.ranks or self.best is None or self.rate(self.best) <= 1:
                break
            self.form = {**self.form, **{name: self.best.sizes[name] for name in self.ranks}}
        return self.best

    def _score(self, found: Attempt) -> float:
        return self.rate(found) + PULL * abs(math.log2(self._skew(found.sizes)))

    def _skew(self, sizes: Sizes) -> float:
        """How much wider the leading size is, against the second, than at the start."""
        if len(self.start) < 2:
            return 1.0
        lead, second = list(self.start)[:2]
        return (sizes[lead] / sizes[second]) / (self.start[lead] / self.start[second])

    def _attempts(self) -> Iterator[Any]:
        """Sizes that have about the right bytes, those nearest to their proportion first."""
        if not self.start:
            yield self._ranked({})
            return
        lead = next(iter(self.start))
        middle = self._solve(
            lambda size: self._in_proportion(self.start, size), self.start[lead], _state
        )
        if middle is None:
            yield self.attempt({**self.form, **self.start})
            return
        base = {name: middle.sizes[name] for name in self.start}
        yield self._ranked(base)
        if len(base) == 1:
            for step in NEAR:
                yield self._ranked({lead: max(1, base[lead] + step)})
            return
        leads = [base[lead], *(max(1, round(base[lead] * skew)) for skew in SKEWS)]
        if self.ranks:
            leads = [*(max(1, base[lead] + step) for step in NEAR), *leads]
        errors: dict[int, float] = {}
        for size in dict.fromkeys(leads):
            yield from self._with_lead(base, size, errors)
        if not self.ranks and self.compares:
            for low, high in _crossings(errors):
                yield from self._between(base, low, high, errors)

    def _in_proportion(self, base: Sizes, size: int) -> Sizes:
        """``base`` with another leading size, and the others larger or smaller by as much."""
        lead, value = next(iter(base.items()))
        scaled = {name: max(1, round(own * size / value)) for name, own in base.items()}
        return {**scaled, lead: size}

    def _with_lead(self, base: Sizes, size: int, errors: dict[int, float]) -> Iterator[Any]:
        """The second size that gives the bytes at a leading one, and those beside it."""
        lead, second = list(base)[:2]
        fixed = self._in_proportion(base, size)
        guess = max(1, round(base[second] * base[lead] / size))
        found = self._solve(lambda at: {**fixed, second: at}, guess, _state)
        if found is None:
            return
        errors[size] = found.parameter_difference
        middle = found.sizes[second]
        for step in NEAR[:3]:
            yield self._ranked({**fixed, second: max(1, middle + step)})

    def _between(self, base: Sizes, low: int, high: int, errors: dict[int, float]) -> Iterator[Any]:
        """Halve the way between two leading sizes of which one has too many parameters."""
        while high - low > 1:
            middle = (low + high) // 2
            yield from self._with_lead(base, middle, errors)
            if middle not in errors:
                return
            same = (errors[middle] > 0) == (errors[low] > 0)
            low, high = (middle, high) if same else (low, middle)

    def _ranked(self, sizes: Sizes) -> Any:
        """Sizes with the rank that brings their parameters nearest."""
        if not self.ranks:
            return self.attempt({**self.form, **sizes})
        ranks = self.ranks
        return self._solve(lambda at: {**sizes, **dict.fromkeys(ranks, at)}, 1, _parameters)

    def _solve(
        self,
        sizes: Callable[[int], Sizes],
        start: int,
        difference: Callable[[Attempt], float],
    ) -> Any:
        """The attempt whose difference, which grows with the number, is nearest to zero."""
        known: dict[int, Any] = {}
        most: int | None = None
        at = max(1, start)
        for _ in range(STEPS):
            number = self._fitting(sizes, at, known)
            if number is None:
                # Above what fits: half the way back.
                most = at
                at = (max((n for n in known if n < most), default=0) + most) // 2
            else:
                at = _next({n: difference(one) for n, one in known.items()})
                at = at if most is None else min(at, most - 1)
            if at in known or at < 1:
                break
        return min(known.values(), key=lambda one: abs(difference(one)), default=None)

    def _fitting(self, sizes: Callable[[int], Sizes], at: int, known: dict[int, Any]) -> int | None:
        """Try a number, or one beside it where a mixer takes only some (even ones, say)."""
        for number in (at + step for step in NEAR if at + step >= 1):
            found = self.attempt({**self.form, **sizes(number)})
            if found is not None:
                known[number] = found
                return number
        return None


def _state(found: Attempt) -> float:
    return found.state_difference


def _parameters(found: Attempt) -> float:
    return found.parameter_difference


def _next(known: dict[int, float]) -> int:
    """Where a growing line through what is known crosses zero; a number that is known if none is
    left to be tried."""
    points = sorted(known.items())
    if len(points) == 1:
        # As if it grew in proportion; at least to another number.
        number, difference = points[0]
        guess = max(1, round(number / max(1 + difference, 0.01)))
        return guess if guess != number else max(1, number - (1 if difference > 0 else -1))
    below = [point for point in points if point[1] <= 0]
    above = [point for point in points if point[1] > 0]
    if below and above:
        one, other = below[-1], above[0]
        if other[0] - one[0] <= 1:
            return one[0]
    else:
        one, other = points[-2:] if below else points[:2]
    if other[1] <= one[1]:
        return one[0]
    guess = max(1, round(one[0] - one[1] * (other[0] - one[0]) / (other[1] - one[1])))
    # Between two numbers that enclose it, but not on one of them.
    return min(max(guess, one[0] + 1), other[0] - 1) if below and above else guess


def _crossings(errors: dict[int, float]) -> list[tuple[int, int]]:
    """Neighbouring numbers between which errors change their sign."""
    order = sorted(errors)
    signs = itertools.pairwise((number, errors[number] > 0) for number in order)
    return [(low, high) for (low, below), (high, above) in signs if below != above]
