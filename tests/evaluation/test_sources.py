"""Rows are found in every form in which benchmarks are published, and what is wrong is named."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import BadRowWarning, collected_bad_rows
from allmem.evaluation.sources import Source, read_lines
from allmem.evaluation.task import Setting
from tests.evaluation.benchmark_files import put, row

SOURCE = Source("longbench", "hotpotqa", "THUDM/LongBench", "data.zip")
ROWS = [row(0), row(1)]


def ids(data: Path | None, source: Source = SOURCE, skip: bool = False) -> list[str]:
    lines = read_lines(source, Setting(data=data, skip_bad_rows=skip))
    return [line.values["_id"] for line in lines]


@pytest.mark.parametrize(
    "place",
    [
        "hotpotqa.jsonl",
        "data/hotpotqa.jsonl",
        "longbench/hotpotqa.jsonl.gz",
        "longbench/data/hotpotqa.jsonl.xz",
        "LongBench/hotpotqa.jsonl",
    ],
)
def test_own_file_is_found_where_it_may_lie(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, ROWS)
    put(tmp_path / "musique.jsonl", [row(7, dataset="musique")])
    assert ids(tmp_path) == ["row-0", "row-1"]


@pytest.mark.parametrize(
    "member", ["data/hotpotqa.jsonl", "hotpotqa.jsonl", "data/hotpotqa.jsonl.gz"]
)
def test_set_is_taken_out_of_an_archive(tmp_path: Path, member: str) -> None:
    inside = put(tmp_path / "made" / Path(member).name, ROWS).read_bytes()
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa_e.jsonl", "{}\n")
        archive.writestr(member, inside)
    assert ids(tmp_path / "in") == ["row-0", "row-1"]


def test_sets_mixed_in_one_file_are_told_apart(tmp_path: Path) -> None:
    mixed = [row(i, dataset=name) for i, name in enumerate(["hotpotqa", "musique", "hotpotqa"])]
    put(tmp_path / "other.jsonl.xz", mixed)
    put(tmp_path / "unrelated.jsonl", ["no json", '{"dataset": "qasper"}'])
    assert ids(tmp_path) == ["row-0", "row-2"]


def test_own_file_goes_before_mixed_ones(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", [row(9, dataset="hotpotqa")])
    put(tmp_path / "hotpotqa.jsonl", ROWS)
    assert ids(tmp_path) == ["row-0", "row-1"]


def test_lines_keep_file_and_number(tmp_path: Path) -> None:
    path = put(tmp_path / "data.zip", ["", *ROWS], "data/hotpotqa.jsonl")
    first = next(read_lines(SOURCE, Setting(data=tmp_path)))
    assert first.place == f"{path}/data/hotpotqa.jsonl, line 2"


@pytest.mark.parametrize(("line", "said"), [('{"a": ', "is not JSON"), ("[1]", "is a list")])
def test_unreadable_line_is_an_error_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    put(tmp_path / "hotpotqa.jsonl", [ROWS[0], line, ROWS[1]])
    with pytest.raises(AllMemError, match=rf"hotpotqa\.jsonl, line 2 {said}"):
        ids(tmp_path)


def test_unreadable_lines_are_counted_where_they_may_be_left_out(tmp_path: Path) -> None:
    put(
        tmp_path / "hotpotqa.jsonl",
        [ROWS[0], "{", "\udc80".encode("utf-8", "replace").decode(), ROWS[1]],
    )
    with collected_bad_rows() as bad:
        assert ids(tmp_path, skip=True) == ["row-0", "row-1"]
    assert len(bad) == 2


def test_unreadable_line_of_a_mixed_file_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "mixed.jsonl", ["{", row(0, dataset="hotpotqa")])
    with pytest.raises(AllMemError, match=r"mixed\.jsonl, line 1 is not JSON"):
        ids(tmp_path)
    with pytest.warns(BadRowWarning, match="line 1"):
        assert ids(tmp_path, skip=True) == ["row-0"]


def test_missing_file_says_what_was_looked_for_and_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "longbench").mkdir()
    with pytest.raises(AllMemError) as caught:
        ids(tmp_path)
    for said in ("hotpotqa.jsonl", "data.zip", str(tmp_path / "longbench"), "THUDM/LongBench"):
        assert said in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match=r"there is no folder .*nowhere"):
        ids(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["hotpotqa.jsonl.gz", "hotpotqa.jsonl.xz", "data.zip"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    rows = [row(i, context="words " * 500) for i in range(30)]
    path = put(tmp_path / name, rows, "hotpotqa.jsonl" if name.endswith("zip") else None)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AllMemError, match=f"{name} is damaged.*huggingface.co/datasets/THUDM"):
        ids(tmp_path)


def test_hub_files_are_downloaded_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "data.zip", ROWS, "data/hotpotqa.jsonl")
    asked = []

    def download(repo: str, file: str, repo_type: str) -> str:
        asked.append((repo, file, repo_type))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert ids(None) == ["row-0", "row-1"]
    assert asked == [("THUDM/LongBench", "data.zip", "dataset")]


def test_hub_out_of_reach_says_where_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(AllMemError, match=r"no route to host.*huggingface\.co/datasets/THUDM"):
        ids(None)


def test_good_files_are_read_without_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "hotpotqa.jsonl", ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ids(tmp_path)) == 2
