"""The examples run, on a tiny random model in the place of SmolLM2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import allmem
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from examples import my_mixer, quickstart, save_and_fork
from tests.cli.conftest import STORY, draw_memory, make_base, make_tokenizer

ROOT = Path(__file__).parents[2]
SIZES = ["--window", "16", "--sinks", "2", "--chunk", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer()
    make_base(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "story.txt").write_text(STORY, encoding="utf-8")
    return folder


def test_quickstart_reads_and_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = str(folder / "story.txt")
    quickstart.main([story, "Who?", "--model", str(folder), "--max-new-tokens", "5", *SIZES])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("read ")
    assert len(lines) > 1


def test_quickstart_has_a_text_of_its_own() -> None:
    text = quickstart.read_text(None)
    assert len(text) == quickstart.CHARACTERS + len(quickstart.HIDDEN) + 2
    assert text.index("Golden Walter") > text.index(quickstart.HIDDEN)


def test_a_question_longer_than_the_text_is_a_question(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the mask, ``generate`` would take it for the whole text."""
    (tmp_path / "short.txt").write_text("A ring.", encoding="utf-8")
    arguments = [str(tmp_path / "short.txt"), STORY, "--model", str(folder)]
    quickstart.main([*arguments, "--max-new-tokens", "5", *SIZES])
    assert capsys.readouterr().out.startswith("read ")


def test_a_state_is_asked_in_another_process(folder: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "story.safetensors")
    options = ["--model", str(folder), *SIZES]
    save_and_fork.main(["read", state, str(folder / "story.txt"), *options])
    questions = ["Who saw the lady?", "What did the maid wear?"]
    ask = ["ask", state, *questions, "--max-new-tokens", "5", *options]
    done = subprocess.run(
        [sys.executable, "-m", "examples.save_and_fork", *ask],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [q for q in done.stdout.splitlines() if q in questions] == questions


class TestMine(MixerConformance):
    """The memory of one's own keeps the contract, with blocks smaller than its sequences."""

    hidden_size = 24

    def make_mixer(self) -> Mixer:
        torch.manual_seed(1)
        return my_mixer.MineMixer(24, my_mixer.MineConfig(block=5), AttentionWeights(4, 2, 8))


def test_a_model_is_converted_with_it(tmp_path: Path) -> None:
    """Read, generate, save and load, with every slow weight drawn at random."""
    from transformers import AutoModelForCausalLM

    model = allmem.convert(make_base(61), window=16, sinks=2, mixers="mine")
    draw_memory(model)
    ids = torch.randint(3, 61, (2, 50))
    with torch.no_grad():
        logits = model(ids).logits
        cache = allmem.AllMemCache(model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids.split(17, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits, atol=1e-3, rtol=1e-3)
    assert cache.nbytes == 2 * sum(m.state_bytes(50, torch.float32) for m in model.mixers())
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[0] == 2

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again.mixers()[0].memory, my_mixer.MineMixer)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
    allmem.save_adapter(model, tmp_path / "adapter.safetensors")
    adapted = allmem.load_adapter(make_base(61), tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(adapted(ids).logits, logits)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"blok": 3}, "unknown MineConfig key 'blok'; did you mean 'block'"),
        ({"block": "a"}, "MineConfig: block = 'a' must be a whole number"),
        ({"block": 0}, "MineConfig: block = 0 must be a positive whole number"),
    ],
)
def test_its_options_are_refused_in_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(allmem.AllMemError, match=said):
        allmem.convert(make_base(61), window=16, mixers="mine", mixer_options={"mine": values})


def test_it_starts_from_the_attention_beside_it() -> None:
    base = make_base(61)
    attention = base.model.layers[0].self_attn
    q, k = attention.q_proj.weight.clone(), attention.k_proj.weight.clone()
    memory = allmem.convert(base, window=16, mixers="mine").mixers()[0].memory
    assert isinstance(memory, my_mixer.MineMixer)
    assert torch.equal(memory.k.weight, k)
    # Four query heads of 8 on two memory heads.
    torch.testing.assert_close(memory.q.weight[:8], (q[:8] + q[8:16]) / 2)
