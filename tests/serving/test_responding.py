"""A collection whose prompts an engine answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from allmem import AllMemError
from allmem.distill.collect import collect
from allmem.distill.prompts import Prompts, read_prompts
from allmem.distill.responder import Responder
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from allmem.serving import installed
from allmem.serving.embedded import EmbeddedEngine
from allmem.serving.opening import settled
from allmem.serving.responding import EngineResponder, responding
from tests.distill.chats import make_student, write_prompts
from tests.models.tiny import tiny_model

GREEDY, DRAWN = Sampling(seed=0), Sampling(temperature=0.8, top_p=0.9, top_k=200, seed=0)
NEW = 12


@pytest.fixture(scope="module")
def student() -> OpenedModel:
    return make_student()


@pytest.fixture
def prompts(student: OpenedModel, tmp_path: Path) -> Prompts:
    return read_prompts([write_prompts(tmp_path)], student.tokenizer)


@pytest.fixture(params=[GREEDY, DRAWN], ids=["greedy", "drawn"])
def engine(
    request: pytest.FixtureRequest, student: OpenedModel, prompts: Prompts
) -> Iterator[EngineResponder]:
    stop = Responder(student, prompts.end, request.param, NEW).stop
    engine = EmbeddedEngine(student.model, slots=2)
    responder = EngineResponder(engine, stop, request.param, NEW)
    yield responder
    responder.close()


def test_answers_do_not_depend_on_who_is_asked_beside(
    engine: EngineResponder, prompts: Prompts
) -> None:
    ids = [prompt.ids for prompt in prompts.listed]
    together = engine(ids, range(len(ids)))
    assert together == [engine([one], [i])[0] for i, one in enumerate(ids)]


def test_the_likeliest_answers_are_those_of_generate(
    student: OpenedModel, prompts: Prompts
) -> None:
    responder = Responder(student, prompts.end, GREEDY, NEW)
    ids = [prompt.ids for prompt in prompts.listed]
    with_engine = EngineResponder(EmbeddedEngine(student.model), responder.stop, GREEDY, NEW)
    assert with_engine(ids, range(len(ids))) == responder(ids, range(len(ids)))
    with_engine.close()


def test_a_file_tells_its_engine_and_is_gone_on_with_by_it_alone(
    engine: EngineResponder, student: OpenedModel, prompts: Prompts, tmp_path: Path
) -> None:
    file = tmp_path / "responses.jsonl"
    collect(student, prompts, file, engine._sampling, max_new_tokens=NEW, engine=engine)
    header = json.loads(file.read_text().splitlines()[0])
    assert header["engine"] == "embedded"
    with pytest.raises(AllMemError, match="engine"):
        collect(student, prompts, file, engine._sampling, max_new_tokens=NEW)


def test_the_embedded_engine_answers_if_asked_for(student: OpenedModel, prompts: Prompts) -> None:
    ids = [prompt.ids for prompt in prompts.listed]
    asked = responding("embedded", student, prompts.end, GREEDY, max_new_tokens=NEW, slots=2)
    with asked as (respond, together):
        assert respond is not None
        assert (respond.name, together) == ("embedded", 16)
        found = respond(ids, range(len(ids)))
    assert found == Responder(student, prompts.end, GREEDY, NEW)(ids, range(len(ids)))


def test_states_that_grow_are_not_given_to_vllm_unasked(
    student: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object())
    assert settled("auto", student) == "vllm"
    asked = OpenedModel(tiny_model(mixers=["full", "allmem"]), student.tokenizer)
    with responding("auto", asked, 0, GREEDY, max_new_tokens=NEW, slots=2) as (respond, _):
        assert respond is not None
        assert respond.name == "embedded"


def test_vllm_is_asked_for_in_vain_where_it_is_not_installed(
    student: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    asked = responding("vllm", student, 0, GREEDY, max_new_tokens=NEW, slots=2)
    message = r"pip install 'allmem\[serve\]', or use --engine embedded"
    with pytest.raises(AllMemError, match=message), asked:
        pass
