"""Thoughts are kept in rows and never scored, whoever the model told them to."""

from __future__ import annotations

import pytest

from allmem.evaluation.probes import turns
from allmem.evaluation.probes.scoring import score_answer
from allmem.evaluation.suites.longbench import TASKS
from allmem.evaluation.task import Example, Request, Row, Setting
from allmem.evaluation.thinking import after_thinking
from tests.evaluation.answering import Recorder

THOUGHT = "<think>\nRome? No. Of 12345 and 67890 it is\n</think>\n\n"


def answered(request: Request, setting: Setting) -> tuple[Row, Recorder]:
    model = Recorder(says=f"{THOUGHT}Paris")
    reference = {"answers": ["Paris"], "all_classes": None}
    example = Example("1", request, reference)
    task = TASKS["longbench/hotpotqa"]()
    [row] = task.answer(model, [example], setting)
    return {**row, "reference": reference, "cell": {}}, model


def test_an_answer_is_what_stands_behind_the_last_thought() -> None:
    assert after_thinking(f"{THOUGHT}{THOUGHT}Paris\nyes") == "Paris\nyes"
    assert after_thinking("Rome </think>Paris") == "Paris"
    assert after_thinking(" Paris") == " Paris"


def test_a_prompt_s_answer_is_scored_without_thoughts_and_kept_with_them() -> None:
    row, _ = answered(Request("Where?", 9), Setting())
    assert row["prediction"] == f"{THOUGHT}Paris"
    task = TASKS["longbench/hotpotqa"]()
    [part] = task.parts(row)
    assert part.scores[task.metric] == 1.0


@pytest.mark.parametrize("thinking", [False, True])
def test_what_ends_an_answer_ends_no_thought(thinking: bool) -> None:
    _, model = answered(Request("Where?", 9, ends_at="\n"), Setting(thinking=thinking))
    assert model.asked[0].ends_at == ("" if thinking else "\n")


def test_a_probe_s_answer_is_scored_without_thoughts() -> None:
    question = {"answers": ["67890"], "stale": ["12345"], "rivals": []}
    assert score_answer(question, {"prediction": f"{THOUGHT}67890."})["stale"] == 0.0
    assert score_answer(question, {"prediction": f"{THOUGHT}12345."})["exact"] == 0.0
    choice = {"answers": ["67890"], "stale": [], "rivals": ["12345"]}
    assert score_answer(choice, {"prediction": f"{THOUGHT}67890."})["choice"] == 1.0


def test_a_turn_s_answer_is_scored_without_thoughts() -> None:
    said = {"prediction": f"{THOUGHT}Rome", "nll": 1.0}
    row = {
        "reference": {"values": ["12345"]},
        "cell": {},
        "turns": [{"reused": said, "copy": {"prediction": f"{THOUGHT}12345", "nll": 1.0}}],
    }
    [part] = turns.Turns().parts(row)
    assert (part.scores["exact"], part.scores["copy_exact"]) == (0.0, 1.0)
