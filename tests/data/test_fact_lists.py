"""Lists of facts: what is asked is older than the window, and only that is learned."""

from __future__ import annotations

from typing import Any

import pytest

from allmem.data.fact_lists import FactLists, FactWriter
from allmem.data.made_rows import HELD_OUT, NAMES
from allmem.errors import AllMemError
from tests.data.tokenizers import small_tokenizer

TOKENIZER = small_tokenizer("qwen3")
WINDOW = 30


def writer(window: int = WINDOW, held_out: bool = False, **settings: Any) -> FactWriter:
    facts = FactLists(**{"counts": (6,), **settings})
    return FactWriter(facts, TOKENIZER, window, held_out=held_out)


def decoded(ids: Any) -> str:
    return TOKENIZER.decode([int(i) for i in ids])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gaps": (40,)},
        {"scattered": (12,)},
        {"forms": ("The key of {name} is {number}.\n",)},
        {"digits": 7, "counts": (3,), "gaps": (30,)},
    ],
)
def test_every_learned_token_is_a_digit_of_a_fact_that_the_window_has_lost(
    settings: dict[str, Any],
) -> None:
    made = writer(**settings)
    for number in range(5):
        row = made.row(number)
        ids, labels = row["input_ids"], row["labels"]
        asked = (labels >= 0).nonzero()[:, 0].tolist()
        assert asked
        assert labels[asked].equal(ids[asked])
        text = decoded(ids)
        for place in asked:
            assert decoded(ids[place : place + 1]).strip().isdigit()
            # The window of the position that predicts it does not hold the number's first place.
            before = decoded(ids[:place])
            line = before.rsplit("\n", 1)[1]
            earlier = decoded(ids[: place - made.window])
            assert line in earlier, (line, text)


def test_prose_is_learned_if_wanted() -> None:
    plain, learned = (
        writer(gaps=(40,), scattered=(10,), learn_prose=learn).row(0) for learn in (False, True)
    )
    assert learned["input_ids"].equal(plain["input_ids"])
    more = (learned["labels"] >= 0) & (plain["labels"] < 0)
    assert bool((learned["labels"] >= 0)[plain["labels"] >= 0].all())
    assert not any(c.isdigit() for c in decoded(learned["input_ids"][more]))
    assert int(more.sum()) >= 40 + 6 * 10


def test_a_shorter_window_asks_for_more() -> None:
    few, many = (
        sum(int((writer(window).row(i)["labels"] >= 0).sum()) for i in range(5))
        for window in (50, 10)
    )
    assert few < many


def test_rows_follow_seed_and_number() -> None:
    one, other = writer(), writer()
    assert one.row(3)["input_ids"].equal(other.row(3)["input_ids"])
    assert not one.row(3)["input_ids"].equal(one.row(4)["input_ids"])


def test_held_out_names_are_never_trained_on() -> None:
    trained = " ".join(decoded(writer(counts=(20,)).row(i)["input_ids"]) for i in range(20))
    judged = " ".join(
        decoded(writer(held_out=True, counts=(20,)).row(i)["input_ids"]) for i in range(20)
    )
    assert not any(f"{name}:" in trained for name in NAMES[:HELD_OUT])
    assert not any(f"{name}:" in judged for name in NAMES[HELD_OUT:])


def test_a_row_is_no_longer_than_promised() -> None:
    made = writer(10, gaps=(0, 40), scattered=(0, 9), counts=(3, 6))
    assert max(len(made.row(i)["input_ids"]) for i in range(30)) <= made.longest


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"counts": ()}, "counts is empty"),
        ({"counts": (1,)}, "counts: 1"),
        ({"counts": (99,)}, "counts: 99"),
        ({"gaps": (-1,)}, "-1 must be 0 or more"),
        ({"digits": 0}, "digits = 0"),
        ({"forms": ("{name} is here",)}, "must hold"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        FactLists(**settings)


def test_rows_within_the_window_are_refused() -> None:
    with pytest.raises(AllMemError, match="no fact older than the window of 500"):
        writer(window=500).row(0)
