"""Versions of what decides answers and scores."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from allmem._version import __version__

__all__ = ["deciding_versions"]

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "rouge",
    "rouge-score",
    "jieba",
    "fuzzywuzzy",
    "nltk",
    "langdetect",
    "math-verify",
    "latex2sympy2-extended",
    "sympy",
    # Carries nltk's rules for sentences where they cannot be downloaded.
    "llama-index-core",
)
"""What reads prompts, makes tasks and measures answers; scorers are optional."""


def deciding_versions() -> dict[str, str]:
    """Of this library, of Python and of those of the packages that are installed."""
    found = {"allmem": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
