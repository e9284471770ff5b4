"""Documents by the name of a file, or of a text that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from allmem.documents import LEARNED, READ, load_book, read_document, shipped_texts
from allmem.errors import AllMemError


def test_texts_that_ship_are_read_by_their_names() -> None:
    assert {LEARNED, READ, "smollm2_samples"} <= set(shipped_texts())
    for name in shipped_texts():
        assert len(read_document(name).split()) > 1000
    assert read_document(READ) == load_book(READ)


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(READ).write_text("mine", encoding="utf-8")
    assert read_document(READ) == "mine"


def test_other_names_are_files() -> None:
    with pytest.raises(AllMemError, match="chesterton"):
        read_document("chesterton")
