"""Documents: plain text from a file, from standard input or from the books that ship with allmem,
with errors that say what is wrong.

It knows nothing of tokens or models.
"""

from __future__ import annotations

import lzma
import sys
from importlib import resources
from pathlib import Path

from allmem.errors import AllMemError

__all__ = [
    "LEARNED",
    "READ",
    "STDIN",
    "choose_prompt",
    "load_book",
    "read_document",
    "shipped_texts",
]

STDIN = "-"
"""The name under which standard input is a document."""
PACKED = ".txt.xz"
LEARNED = "chesterton_man_who_was_thursday_1908"
"""The book that memories are distilled on."""
READ = "morris_wood_beyond_the_world_1894"
"""The book that is read and asked about. Nothing is learned from it."""


def load_book(name: str) -> str:
    """The text of a book that ships with allmem."""
    file = resources.files("allmem") / "resources" / f"{name}{PACKED}"
    return lzma.decompress(file.read_bytes()).decode()


def shipped_texts() -> list[str]:
    """The names of the texts that ship with allmem."""
    folder = resources.files("allmem") / "resources"
    names = [file.name for file in folder.iterdir()]
    return sorted(name.removesuffix(PACKED) for name in names if name.endswith(PACKED))


def read_document(name: str) -> str:
    """The text of a UTF-8 file, of one that ships with allmem (by its name, where there is no such
    file), or of standard input for ``-``.

    Raises:
        AllMemError: if it is missing, a folder, empty, binary or in another encoding.
    """
    label = "standard input" if name == STDIN else name
    if name != STDIN and not Path(name).exists() and name in shipped_texts():
        return load_book(name)
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except FileNotFoundError:
        raise AllMemError(f"there is no file {name}") from None
    except IsADirectoryError:
        raise AllMemError(f"{name} is a folder; name a text file in it") from None
    except OSError as error:
        raise AllMemError(f"cannot read {label}: {error.strerror}") from error
    # No text holds a zero byte, but UTF-16 does.
    if b"\0" in data:
        raise AllMemError(
            f"{label} is not a text file (it holds zero bytes); give plain UTF-8 text"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AllMemError(
            f"{label} is not UTF-8 (byte {data[error.start]:#04x} at offset {error.start}); "
            "convert it, for example with iconv -f latin1 -t utf-8"
        ) from None
    if not text.strip():
        raise AllMemError(f"{label} is empty; there is nothing to read")
    return text


def choose_prompt(prompt: str | None, file: str | None) -> str:
    """The text to continue: given itself, or in a file, or else on standard input.

    Raises:
        AllMemError: if both are given, or neither and standard input is a terminal.
    """
    if prompt is not None:
        if file is not None:
            raise AllMemError("both a prompt and a file were given; give one of them")
        if not prompt:
            raise AllMemError("the prompt is empty; give some text to continue")
        return prompt
    if file is None and sys.stdin.isatty():
        raise AllMemError("there is no prompt; give one, name a file, or pipe a text in")
    return read_document(STDIN if file is None else file)
