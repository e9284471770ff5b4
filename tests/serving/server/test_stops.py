"""Stop strings end a text at the same place, whatever its pieces are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from allmem.serving.server.stops import StopStrings

LETTERS = st.sampled_from("ab")


def ended(text: str, stops: list[str]) -> tuple[str, bool]:
    """The same letter by letter, with nothing held back."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(LETTERS, max_size=5), max_size=6),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
)
def test_pieces_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    text, found = ended("".join(pieces), stops)
    watch = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += watch.push(piece)
        # What was shown is never taken back.
        assert text.startswith(shown)
        if watch.found:
            break
    shown += watch.rest()
    assert (shown, watch.found) == (text, found)


def test_only_what_may_begin_a_stop_is_held() -> None:
    watch = StopStrings(["\n\nUser:", "###"])
    assert watch.push("yes #") == "yes "
    assert watch.push(" no\n") == "# no"
    assert watch.push("\nUs") == ""
    assert watch.push("e it") == "\n\nUse it"
    assert not watch.found
