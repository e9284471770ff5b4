"""What sort of token each one of a text is, so that losses can be told apart: numbers, names,
fillers, other words; and for words whether they stood before, and still within the window.

English in its conventions: words are runs of letters, names begin with a capital.

Letters: T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from allmem.prompts import plain_spans, start_ids

__all__ = ["KINDS", "SEEN", "Sort", "encode_with_sorts", "sorts"]

KINDS = ("number", "name", "word", "filler")
SEEN = ("recalled", "recent", "new")


def _words(text: str) -> list[str]:
    return text.split()


_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Behind one of these a capital says nothing; an opening quotation mark begins a sentence too.
_BEFORE_CAPITAL = tuple(".!?…:;\"“”‘'*_([-–—")
_TITLES = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.")
_FUNCTION_WORDS = frozenset(
    _words(
        "a about after again against all also am an and any are as at be because been before being "
        "between both but by can could did do does doing down during each even ever every few for "
        "from had has have having he her here hers herself him himself his how i if in into is it "
        "its itself just let like may me might mine more most much must my myself never no nor not "
        "now o of off oh on once one only or other our ours out over own shall she should so some "
        "such than that the thee their theirs them themselves then there these they thine this "
        "those thou though through thy to too under unto up upon us very was we were what when "
        "where which while who whom whose why will with without would yea yes yet you your yours"
    )
)
LOOK_BACK = 16
"""Characters before a word that tell whether it begins a sentence."""


class Sort(NamedTuple):
    """What a token is."""

    kind: str
    """One of ``KINDS``: ``filler`` is punctuation, space and function words."""
    seen: str | None
    """One of ``SEEN``; ``recalled``: the word stood earlier in the text, but not among the tokens
    that attention still sees. ``None`` for fillers, which are everywhere."""


FILLER = Sort("filler", None)


def encode_with_sorts(
    tokenizer: Any, text: str, window: int, sinks: int
) -> tuple[list[int], list[Sort]]:
    """The tokens of a text, with what the tokenizer puts before it, and the sort of each.

    Args:
        window, sinks: of the attention; see ``sorts``.
    """
    before = start_ids(tokenizer)
    ids, spans = plain_spans(tokenizer, text)
    return before + ids, sorts(text, [(0, 0)] * len(before) + spans, window, sinks)


def sorts(text: str, spans: Sequence[tuple[int, int]], window: int, sinks: int) -> list[Sort]:
    """The sort of every token.

    Args:
        spans: of T tokens: first character and end.
        window: keys seen behind a token, itself included: token t is predicted from t - window
            on, and from the first ``sinks`` tokens.
    """
    words = list(_WORD.finditer(text))
    found: list[Sort] = []
    last_token: dict[str, int] = {}
    in_sinks: set[str] = set()
    at, entered, current = 0, -1, FILLER
    for t, (begin, end) in enumerate(spans):
        if t and begin < end and spans[t - 1] == (begin, end):
            # Bytes of one character.
            found.append(found[-1])
            continue
        if at == len(words) or words[at].start() >= end or text[begin:end].isspace():
            found.append(FILLER)
            continue
        if entered != at:
            word = words[at].group().casefold()
            entered, current = at, _sort(text, words[at], last_token.get(word), t - window)
            if word in in_sinks and current.seen == "recalled":
                current = Sort(current.kind, "recent")
        found.append(current)
        while at < len(words) and words[at].end() <= end:
            # From here on the word has been read as a whole.
            word = words[at].group().casefold()
            last_token[word] = t
            if t < sinks:
                in_sinks.add(word)
            at += 1
    return found


def _sort(text: str, match: re.Match[str], last: int | None, first_seen: int) -> Sort:
    """The sort of a word that stood last at token ``last``, predicted from ``first_seen`` on."""
    kind = _kind(text, match)
    if kind == "filler":
        return FILLER
    if last is None:
        return Sort(kind, "new")
    return Sort(kind, "recent" if last >= first_seen else "recalled")


def _kind(text: str, match: re.Match[str]) -> str:
    word = match.group()
    if word[0].isdigit():
        return "number"
    if word.casefold() in _FUNCTION_WORDS:
        return "filler"
    # Headings in capitals name nobody.
    capital = word[0].isupper() and not (len(word) > 1 and word.isupper())
    before = text[max(0, match.start() - LOOK_BACK) : match.start()]
    body = before.rstrip()
    begins = not body or "\n\n" in before[len(body) :] or body.endswith(_BEFORE_CAPITAL)
    if begins and body.endswith(_TITLES):
        begins = False
    return "name" if capital and not begins else "word"
