"""``allmem cost``: its numbers are those of the comparison, and it says what they count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from allmem.cost import compare
from allmem.models import modeling
from tests.cli.conftest import C, S, W

SIZES = ["--window", str(W), "--sinks", str(S), "--chunk", str(C)]


def test_the_table_shows_both_ratios_and_what_they_count(run: Any, converted: str) -> None:
    shown = run("cost", converted, "--lengths", "1k,64k").stdout
    model = AutoModelForCausalLM.from_pretrained(converted)
    comparison = compare(model, [2**10, 2**16], model.dtype)
    assert f"window {W}, sinks {S}, chunk {C}" in shown
    assert "attention and memory layers only (what the paper's figure compares)" in shown
    assert "whole model, with MLP and head" in shown
    assert "Counted: matrix products" in shown
    assert "Not counted: " in shown
    for i in range(2):
        for whole in (False, True):
            for count in (comparison.prefill, comparison.decode):
                ratio = count("AllMem", i, whole) / count("full attention", i, whole)
                assert f"{ratio:.1%}" in shown
        cache = comparison.cache("AllMem", i) / comparison.cache("full attention", i)
        assert f"{cache:.1%}" in shown


def test_an_unconverted_model_is_counted_as_it_would_become(
    run: Any, base: str, converted: str
) -> None:
    before = run("cost", base, *SIZES, "--lengths", "1k").stdout
    assert (
        before.splitlines()[1:] == run("cost", converted, "--lengths", "1k").stdout.splitlines()[1:]
    )


def test_parts_add_up(run: Any, converted: str, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    shown = run("cost", converted, "--lengths", "1k", "--parts", "--json", str(file)).stdout
    told = json.loads(file.read_text())
    assert told["model"] == converted
    assert told["sizes"]["window"] == W
    ours = next(row for row in told["rows"] if row["reading"] == "AllMem")
    for part in ours["prefill_flops"]:
        assert part in shown
    total = sum(ours["prefill_flops"].values()) / 1024
    assert ours["model_prefill_flops_per_token"] == pytest.approx(total)
    shares = [n / 1024 / total for n in ours["prefill_flops"].values()]
    assert sum(shares) == pytest.approx(1)
    assert all(f"{share:.1%}" in shown for share in shares)


def test_a_figure_is_drawn(run: Any, converted: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("cost", converted, "--lengths", "1k,...,8k", "--plot", str(tmp_path / "cost.png"))
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_weights_are_not_loaded(run: Any, converted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("cost loaded the weights")

    monkeypatch.setattr(modeling.AllMemForCausalLM, "from_pretrained", never)
    run("cost", converted, "--lengths", "1k")


def test_the_paper_s_shapes_need_no_network(run: Any) -> None:
    shown = run("cost", "qwen3-0.6b", "--width", "256", "--lengths", "128k").stdout
    assert "window 4,096, sinks 128, chunk 2,048" in shown
    assert "11.4%" in shown
    assert "5.0%" in shown


def test_bad_input_is_told_in_a_line(fails: Any, converted: str, tmp_path: Path) -> None:
    assert "'4q'" in fails("cost", converted, "--lengths", "4q")
    assert "cannot write" in fails("cost", converted, "--json", str(tmp_path / "no" / "file.json"))
    assert "no/such" in fails("cost", "/no/such")
    assert "fixed already" in fails("cost", converted, "--projections", "shared")
