"""Several sources in turn: which row is which, and that processes and resumed runs agree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from allmem.choices import Conversion
from allmem.distill import DistillConfig
from allmem.distill.launch import read_rows, run_recipe
from allmem.distill.mixture import MixedRows
from allmem.distill.recipe import DataSource, Recipe
from allmem.distill.rows import ListRows, Row, Rows
from allmem.opening import open_model
from allmem.schema import build_from
from tests.cli.conftest import make_base, make_tokenizer


def numbered(source: int) -> Rows:
    """Rows that say where they come from."""

    class Numbered(ListRows):
        def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
            number = first + rank
            while True:
                ids = torch.tensor([source, number])
                yield {"input_ids": ids, "labels": ids, "position_ids": torch.arange(2)}
                number += world

    row = {"input_ids": torch.zeros(source + 2), "labels": torch.zeros(source + 2)}
    return Numbered([row])


def said(rows: Rows, first: int, count: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in islice(rows.read(first, rank, world), count)]


MIXED = MixedRows([(2, numbered(0)), (1, numbered(1)), (4, numbered(2))])


def test_every_turn_has_the_shares_and_every_source_its_own_order() -> None:
    rows = said(MIXED, 0, 21)
    for begin in (0, 7, 14):
        turn = [source for source, _ in rows[begin : begin + 7]]
        assert [turn.count(source) for source in range(3)] == [2, 1, 4]
    for source in range(3):
        own = [number for s, number in rows if s == source]
        assert own == list(range(len(own)))
    # Spread over the turn, not one source after the other.
    assert [source for source, _ in rows[:7]] == [2, 0, 2, 1, 2, 0, 2]


@pytest.mark.parametrize("first", [0, 3, 7, 12])
def test_a_run_goes_on_with_the_very_next_row(first: int) -> None:
    assert said(MIXED, first, 9) == said(MIXED, 0, first + 9)[first:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_one_order(world: int) -> None:
    whole = said(MIXED, 5, 4 * world)
    parts = [said(MIXED, 5, 4, rank, world) for rank in range(world)]
    assert [row for step in zip(*parts, strict=True) for row in step] == whole


def test_lengths_and_identity() -> None:
    assert MIXED.longest == 4
    assert MIXED.mean == pytest.approx((2 * 2 + 1 * 3 + 4 * 4) / 7)
    other = MixedRows([(1, numbered(0)), (1, numbered(1)), (4, numbered(2))])
    assert MIXED.fingerprint() != other.fingerprint()


def test_a_recipe_of_everything_that_is_made(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = str(tmp_path / "base")
    make_base(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    prose = tmp_path / "prose.txt"
    prose.write_text("The maid wore an iron ring and said nothing. " * 90, encoding="utf-8")
    own = {"prose": str(prose)}
    values = {
        "model": base,
        "output": str(tmp_path / "run"),
        "device": "cpu",
        "conversion": {"window": 16, "sinks": 2, "chunk": 8, "memory": {"head_dim": 8}},
        "data": {
            "mixture": [
                {"facts": {"counts": [3], **own}},
                {"share": 2, "recitations": {"lengths": [30], **own}},
                {"interviews": {"counts": [2], "scattered": [5], "gaps": [20], **own}},
                {"texts": [str(prose)], "length": 40},
            ],
            "evaluated": 4,
        },
        "training": {"steps": 2, "batch": 5, "stage": "kl"},
    }
    outcome = run_recipe(build_from(Recipe, values, "test"))
    assert outcome.tokens > 2 * 5 * 30
    assert outcome.after.memory.kl > 0
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
    opened = open_model(base, Conversion(16, 2, 8))
    data = build_from(DataSource, values["data"], "test")
    rows, held_out = read_rows(data, opened, DistillConfig(steps=1), window=16)
    assert len(held_out) == 4
    assert isinstance(rows, MixedRows)
    assert rows.turn.count(1) == 2
