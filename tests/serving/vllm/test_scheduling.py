"""States survive what vLLM's cache manager does with their slots: preemption, and a prefix cache
that hands one sequence's slot to another."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from allmem.models.modeling import AllMemForCausalLM
from allmem.serving.vllm import step
from allmem.serving.vllm.checks import SNAPSHOT_TOKENS
from allmem.serving.vllm.slots import StateSlots
from tests.serving.vllm.serving import (
    CACHED,
    MIXED,
    STEP_TOKENS,
    answers,
    assert_as_generate,
    calm_model,
    greedy,
    metric,
    prompts_of,
    serving,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model() -> AllMemForCausalLM:
    return calm_model()


@pytest.fixture
def folder(model: AllMemForCausalLM, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots that were made ready for a text that is read from its start."""
    slots: list[int] = []
    begin = StateSlots.begin

    def recorded(self: StateSlots, slot: int) -> None:
        slots.append(slot)
        begin(self, slot)

    monkeypatch.setattr(StateSlots, "begin", recorded)
    return slots


def test_slots_are_used_again_as_if_new(
    model: AllMemForCausalLM, folder: Path, begun: list[int]
) -> None:
    with serving(folder, max_num_seqs=2, num_gpu_blocks_override=3) as llm:
        assert_as_generate(model, MIXED, answers(llm, MIXED))
    assert len(begun) == len(MIXED)
    assert len(set(begun)) == 2


def test_preempted_sequences_are_read_again(
    model: AllMemForCausalLM, folder: Path, begun: list[int]
) -> None:
    """All that run are, every now and then; nothing else preempts without a prefix cache, since a
    sequence never needs a second slot."""
    with serving(folder) as llm:
        engine = llm.llm_engine
        for i, prompt in enumerate(MIXED):
            engine.add_request(str(i), {"prompt_token_ids": prompt}, greedy(12))
        found, steps = {}, 0
        while engine.has_unfinished_requests():
            steps += 1
            if steps % 9 == 0 and steps < 60:
                engine.reset_prefix_cache(reset_running_requests=True)
            for output in engine.step():
                if output.finished:
                    found[int(output.request_id)] = output.outputs[0]
    assert len(begun) > len(MIXED) + 4
    assert_as_generate(model, MIXED, [found[i] for i in range(len(MIXED))])


def test_preemption_with_a_prefix_cache(
    model: AllMemForCausalLM, folder: Path, begun: list[int]
) -> None:
    """Every 8 tokens a sequence needs another slot, and there are too few for four."""
    with serving(folder, num_gpu_blocks_override=7, **CACHED) as llm:
        found = answers(llm, MIXED, tokens=40)
        preempted = metric(llm, "vllm:num_preemptions")
    assert preempted > 0
    assert_as_generate(model, MIXED, found)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("block", [8, 16, 64])
def test_a_shared_beginning_is_read_once(
    model: AllMemForCausalLM,
    folder: Path,
    block: int,
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "reads_in_place", lambda device: not together)
    shared = prompts_of(150)[0]
    prompts = [shared + end for end in prompts_of(1, 7, 20, 33, 64)]
    with serving(folder, **{**CACHED, "block_size": block}) as llm:
        first = answers(llm, prompts[:1])
        rest = answers(llm, prompts[1:])
        again = answers(llm, prompts)
        hits = metric(llm, "vllm:prefix_cache_hits")
    # Blocks that end within what is shared, by four that follow.
    assert hits >= 4 * (len(shared) // block * block)
    assert_as_generate(model, prompts, [*first, *rest])
    assert_as_generate(model, prompts, again)


def test_blocks_larger_than_a_step(model: AllMemForCausalLM, folder: Path) -> None:
    with serving(folder, **{**CACHED, "block_size": 2 * STEP_TOKENS + 2}) as llm:
        found = [*answers(llm, MIXED), *answers(llm, MIXED)]
    assert_as_generate(model, MIXED * 2, found)


def test_no_prefix_cache_unless_asked_for(folder: Path) -> None:
    with serving(folder) as llm:
        assert not llm.llm_engine.vllm_config.cache_config.enable_prefix_caching


def test_snapshots_are_few_unless_asked_for(model: AllMemForCausalLM, folder: Path) -> None:
    shared = prompts_of(SNAPSHOT_TOKENS + 20)[0]
    prompts = [shared + end for end in prompts_of(1, 9)]
    options = {"enable_prefix_caching": True, "disable_log_stats": False, "max_model_len": 1024}
    with serving(folder, **options) as llm:
        found = [answers(llm, [prompt])[0] for prompt in prompts]
        assert metric(llm, "vllm:prefix_cache_hits") == SNAPSHOT_TOKENS
    assert_as_generate(model, prompts, found)
