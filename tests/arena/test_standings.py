"""Who is compared with whom, what is marked, and how it is worded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.arena.contenders import Contender
from allmem.arena.figures import Figure
from allmem.arena.ground import Totals
from allmem.arena.jobs import EVALUATION, TRAINING, Job, write_json
from allmem.arena.report import ranked
from allmem.arena.standings import Standing, chances, gather
from allmem.arena.wording import difference_of, figure_of, seeds_of, shown_range
from allmem.choices import Conversion
from tests.arena.tiny import make_config

RIGHT = "right answers"


def contender(name: str) -> Contender:
    return Contender(name, "allmem", Conversion(), Totals(1, 1, 0, 1.0, 1, 1, True))


def figure(value: float, questions: int = 512) -> Figure:
    return Figure(RIGHT, [value] * questions, [1.0] * questions)


def standing(name: str, *values: float, untrained: bool = False) -> Standing:
    """With a value for each seed."""
    return Standing(
        contender(name),
        {None if untrained else i: {RIGHT: figure(value)} for i, value in enumerate(values)},
    )


def finished(folder: Path, seed: int, tokens: int, asked: str = "a", name: str = "allmem") -> Job:
    """A job that has its results."""
    job = Job(make_config(folder), name, Conversion(), seed, 128)
    job.folder.mkdir(parents=True)
    trained = {"base": "b", "diverged": "", "tokens": tokens, "rows": str(seed), "pace": 1.0}
    write_json(
        job.folder / TRAINING,
        {"identity": job.training_identity(), "stages": ["kl"], **trained},
    )
    evaluated: dict[str, Any] = {"asked": asked, "figures": [figure(0.5).to_dict()], "pace": 1.0}
    write_json(job.folder / EVALUATION, {"identity": job.evaluation_identity(), **evaluated})
    return job


def test_seeds_may_have_rows_of_other_lengths(tmp_path: Path) -> None:
    jobs = [finished(tmp_path, seed, tokens) for seed, tokens in enumerate((152_535, 143_385))]
    (found,) = gather([contender("allmem")], jobs)
    assert set(found.figures) == {0, 1}
    other = finished(tmp_path, 1, 152_535, name="other")
    with pytest.raises(AllMemError, match="tokens of training with seed 1 were 143385"):
        gather([contender("allmem"), contender("other")], [*jobs, other])


def test_other_questions_are_refused(tmp_path: Path) -> None:
    jobs = [finished(tmp_path, 0, 1), finished(tmp_path, 1, 1, asked="others")]
    with pytest.raises(AllMemError, match="the questions were 'a' for allmem, seed 0"):
        gather([contender("allmem")], jobs)


@pytest.mark.parametrize("others", [1, 4])
def test_equal_entrants_are_rarely_marked(others: int) -> None:
    """Their seeds have a standard deviation of two points."""
    trials, seeds, questions, truth = 2000, 3, 512, 0.6
    generator = torch.Generator().manual_seed(0)
    rates = truth + 0.02 * torch.randn(trials, others + 1, seeds, generator=generator)
    counts = torch.binomial(torch.tensor(float(questions)).expand_as(rates), rates, generator)
    marked, covered = 0, 0
    for trial in counts.tolist():
        # One question with the sum and the weight of all has the same mean.
        reference, *rest = (
            Standing(
                contender(str(i)),
                {s: {RIGHT: Figure(RIGHT, [n], [questions])} for s, n in enumerate(own)},
            )
            for i, own in enumerate(trial)
        )
        found = chances([reference, *rest], reference, RIGHT)
        marks = [
            difference_of(one, reference, RIGHT, found[one.contender.name]).mark for one in rest
        ]
        marked += any(marks)
        score = reference.score(RIGHT)
        covered += score.low <= 100 * truth <= score.high
    assert 0.01 < marked / trials <= 0.06
    assert 0.93 <= covered / trials <= 0.97


def test_a_clear_difference_is_marked_with_three_seeds() -> None:
    reference = standing("allmem", 0.50, 0.52, 0.51)
    better, worse = standing("better", 0.70, 0.71, 0.72), standing("worse", 0.30, 0.31, 0.32)
    found = chances([reference, better, worse], reference, RIGHT)
    assert difference_of(better, reference, RIGHT, found["better"]).mark == "better"
    assert difference_of(worse, reference, RIGHT, found["worse"]).mark == "worse"
    two = standing("two", 0.70, 0.71)
    assert chances([reference, two], reference, RIGHT) == {}
    value = difference_of(two, reference, RIGHT)
    assert (value.mark, value.text[:5]) == ("", "+19.5")


def test_marks_are_corrected_for_everybody_who_is_compared() -> None:
    reference = standing("allmem", 0.50, 0.50, 0.50)
    close = standing("close", 0.53, 0.54, 0.55)
    alone = chances([reference, close], reference, RIGHT)["close"]
    assert 0.01 < alone < 0.05
    rest = [standing(str(i), 0.49, 0.50, 0.51) for i in range(4)]
    together = chances([reference, close, *rest], reference, RIGHT)["close"]
    assert together == pytest.approx(5 * alone)
    assert difference_of(close, reference, RIGHT, together).mark == ""


def test_one_that_is_not_trained_is_compared_with_all_seeds() -> None:
    window, trained = standing("w", 0.40, untrained=True), standing("a", 0.50, 0.52, 0.51)
    found = chances([trained, window], trained, RIGHT)
    value = difference_of(window, trained, RIGHT, found["w"])
    assert (value.text, value.mark) == ("-11.0 ± 2.5", "worse")
    assert "over 3 seeds" in value.title


def test_nobody_has_to_be_trained() -> None:
    reference, other = (standing(n, v, untrained=True) for n, v in (("a", 0.5), ("b", 0.6)))
    assert chances([reference, other], reference, RIGHT) == {}
    value = difference_of(other, reference, RIGHT)
    assert (value.text, value.mark) == ("+10.0", "")
    assert "over questions alone" in value.title


def test_one_seed_is_told() -> None:
    value = figure_of(standing("a", 0.5), RIGHT)
    assert value.count == "one seed"
    assert "over questions alone" in value.title
    assert figure_of(standing("w", 0.5, untrained=True), RIGHT).count == ""


def test_one_that_diverged_has_no_mean_and_no_mark() -> None:
    reference, best = standing("allmem", 0.50, 0.51, 0.52), standing("best", 0.97, 0.98, 0.99)
    best.diverged[3] = "its loss is not finite"
    value = figure_of(best, RIGHT)
    assert (value.text, value.count) == ("diverged", "1 of 4")
    assert seeds_of(best, RIGHT) == "97.0, 98.0, 99.0"
    assert best.score(RIGHT).n == 0
    assert ranked([best, reference], RIGHT) == [reference, best]
    for one, other in ((best, reference), (reference, best)):
        assert chances([one, other], other, RIGHT) == {}
        assert difference_of(one, other, RIGHT).text == ""


def test_percentages_end_at_a_hundred() -> None:
    found = standing("a", 0.95, 0.99, 1.0)
    score = found.score(RIGHT)
    assert score.high > 100
    assert shown_range(score, figure(1.0)) == (score.low, 100)
    assert figure_of(found, RIGHT).title.endswith("to 100.00 over 3 seeds")
    nats = Figure("KL", [1.0], [1.0], unit="nats")
    assert shown_range(score, nats) == (score.low, score.high)
