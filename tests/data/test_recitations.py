"""Recitations: what is learned of the second copy stands in the first, out of sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from allmem.data.recitations import Recitations, Reciter
from allmem.errors import AllMemError
from tests.data.tokenizers import small_tokenizer

TOKENIZER = small_tokenizer("qwen3")
WINDOW = 30


def reciter(window: int = WINDOW, held_out: bool = False, **settings: Any) -> Reciter:
    chosen = Recitations(**{"lengths": (50, 70), **settings})
    return Reciter(chosen, TOKENIZER, window, held_out=held_out)


@pytest.mark.parametrize("settings", [{}, {"gaps": (0, 25)}, {"cue": 3}])
def test_every_learned_token_repeats_one_that_the_window_has_lost(settings: dict[str, Any]) -> None:
    made = reciter(**settings)
    for number in range(6):
        row = made.row(number)
        ids, labels = row["input_ids"].tolist(), row["labels"]
        learned = (labels >= 0).nonzero()[:, 0].tolist()
        said = len(learned) + made.recitations.cue
        assert said in made.recitations.lengths
        assert learned == list(range(len(ids) - len(learned), len(ids)))
        assert labels[learned].tolist() == ids[-len(learned) :]
        first = len(made.before)
        assert ids[first : first + said] == ids[-said:]
        # The position that predicts a token of the second copy sees W tokens, itself included.
        assert len(ids) - said - first >= made.window


def test_held_out_rows_are_of_prose_that_no_other_row_holds(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    # A new word at every place, so that an excerpt tells where it stood.
    text.write_text(" ".join("abcdefghij"[int(c)] + "q" for i in range(900) for c in f"{i:03}"))
    ids = reciter(prose=str(text)).prose.ids
    whole = [*ids, *reciter(held_out=True, prose=str(text)).prose.ids]
    for held_out in (False, True):
        made = reciter(held_out=held_out, prose=str(text))
        assert made.prose.ids == (whole[len(ids) :] if held_out else ids)
        assert len(made.row(0)["input_ids"]) <= made.longest
    assert len(ids) == len(whole) - len(whole) // 10


def test_rows_follow_seed_and_number() -> None:
    one, other = reciter(), reciter()
    assert one.row(3)["input_ids"].equal(other.row(3)["input_ids"])
    assert not one.row(3)["input_ids"].equal(one.row(4)["input_ids"])
    assert one.identity == other.identity
    assert one.identity != reciter(cue=4).identity


def test_a_row_is_no_longer_than_promised() -> None:
    made = reciter(gaps=(0, 40))
    lengths = [len(made.row(i)["input_ids"]) for i in range(30)]
    assert max(lengths) == made.longest


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (8,)}, "lengths: 8 must be 9 or more"),
        ({"gaps": (-1,)}, "gaps: -1 must be 0 or more"),
        ({"cue": 0}, "cue = 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        Recitations(**settings)


def test_recitations_within_the_window_are_refused() -> None:
    with pytest.raises(AllMemError, match="within the window of 500"):
        reciter(500)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a fine evening. " * 5)
    with pytest.raises(AllMemError, match=r"text.txt has \d+ tokens, too few for stretches of"):
        reciter(prose=str(text)).row(0)
