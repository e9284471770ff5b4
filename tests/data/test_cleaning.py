"""Cleaning makes text plain, and changes nothing that is plain already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmem.data.cleaning import clean_text, looks_wrongly_decoded, mend_encoding
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.duplicates import Seen
from allmem.data.filters import repetition

CHINESE = "北方的河流每年春天都会涨水，老人说的话是真的。"


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ufeffa\x00b\x1b", "ab"),
        ("a  \n\n\n\n\n\nb \t", "a\n\n\nb"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("e\u0301", "é"),
        (CHINESE, CHINESE),
        ("第一回\n\u3000\u3000此开卷", "第一回\n\u3000\u3000此开卷"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_text_is_made_plain(text: str, plain: str) -> None:
    assert clean_text(text) == plain


@pytest.mark.parametrize("text", [CHINESE, "déjà vu, naïve café", "“quoted” – it’s", "", "ascii"])
def test_right_text_does_not_look_wrong(text: str) -> None:
    assert not looks_wrongly_decoded(text * 5)


@pytest.mark.parametrize("text", ["l’été où naïve", "“Don’t” — she said"])
def test_utf8_read_as_latin1_is_found_and_mended(text: str) -> None:
    broken = text.encode().decode("cp1252", errors="replace").replace("\ufffd", "\x9d")
    assert looks_wrongly_decoded(broken)
    assert mend_encoding(text.encode().decode("latin1")) == text


def test_lost_chinese_is_found() -> None:
    assert looks_wrongly_decoded("他说：锟斤拷锟斤拷，然后走了。")


def test_repetition_is_the_share_of_what_came_before() -> None:
    assert repetition("abcdefghij" * 100) > 0.95
    assert repetition(" ".join(map(str, range(1000, 1400)))) < 0.3
    assert repetition("ja " * 20) == 0.0


def test_what_was_seen_survives_a_restart() -> None:
    turns = (Message("user", "Who?"), Message("assistant", "The old man from the north, he said."))
    for mode in ("exact", "near"):
        first = Seen(mode)  # type: ignore[arg-type]
        first.check(Conversation(turns))
        again = Seen(mode)  # type: ignore[arg-type]
        again.restore(first.take_new())
        with pytest.raises(Dropped, match="duplicate"):
            again.check(Conversation(turns))
        assert len(first.take_new()["keys"]) == 0


def test_white_space_and_case_do_not_make_a_difference() -> None:
    first = Conversation((Message("user", "Who  is\nit?"), Message("assistant", "He")))
    again = Conversation((Message("user", "who is it?"), Message("assistant", "he ")))
    other = Conversation((Message("user", "who is it?he"), Message("assistant", "he")))
    assert first.key() == again.key() != other.key()
