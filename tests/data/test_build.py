"""A build loses nothing, repeats nothing, says what it left out, and can be killed at any point."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest

import allmem.data.build as building
from allmem.data.shards import INDEX, read_index, read_shard
from allmem.errors import AllMemError
from tests.data.folders import build, chats, config, write_rows


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ids_of(folder: Path) -> list[str]:
    index = read_index(folder)
    shards = [read_shard(folder, entry) for entry in index.shards]
    return sorted(f"{s['source']}#{s['id']}" for shard in shards for s in shard.samples)


@pytest.fixture
def two_sources(tmp_path: Path) -> list[dict[str, Any]]:
    first = write_rows(tmp_path / "a.jsonl", chats(60))
    second = write_rows(tmp_path / "b.jsonl", [*chats(30, seed=1), *chats(10)])
    return [{"path": str(first)}, {"path": str(second), "name": "b"}]


def test_every_row_is_kept_once_or_counted(
    tmp_path: Path, two_sources: list[dict[str, Any]]
) -> None:
    index = build(config(*two_sources), tmp_path / "out")
    label = f"{tmp_path.name}/a.jsonl"
    assert index.counts == {label: {"kept": 60}, "b": {"kept": 30, "duplicate": 10}}
    kept = [f"{label}#{i}" for i in range(1, 61)] + [f"b#{i}" for i in range(1, 31)]
    assert ids_of(tmp_path / "out") == sorted(kept)
    assert index.done
    assert len(index.shards) > 4


def test_rows_hold_whole_samples_and_positions_restart(
    tmp_path: Path, two_sources: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "out"
    index = build(config(*two_sources), folder)
    limits = {"short": 128, "long": 400}
    for entry in index.shards:
        shard = read_shard(folder, entry)
        starts = set(shard.document_starts.tolist())
        assert set(shard.row_starts.tolist()) <= starts
        for row in range(shard.rows):
            ids, response, positions = shard.row(row)
            assert len(ids) <= limits[entry["class"]]
            begin = int(shard.row_starts[row])
            zeros = [begin + i for i, p in enumerate(positions.tolist()) if p == 0]
            assert zeros == [s for s in sorted(starts) if begin <= s < begin + len(ids)]
            # A document begins with the template, so no response is predicted across a border.
            assert not response[positions == 0].any()


@pytest.mark.parametrize("survives", range(0, 14, 2))
def test_a_killed_build_goes_on_to_the_same_bytes(
    tmp_path: Path,
    two_sources: list[dict[str, Any]],
    survives: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = config(*two_sources, {"build": "key_value", "take": 5, "length": "long"})
    build(values, tmp_path / "whole")
    writes = 0

    def dying(real: Any) -> Any:
        def write(*args: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes > survives:
                raise KeyboardInterrupt
            return real(*args)

        return write

    for name in ("write_shard", "write_index", "write_tensors"):
        monkeypatch.setattr(building, name, dying(getattr(building, name)))
    with pytest.raises(KeyboardInterrupt):
        build(values, tmp_path / "killed")
    monkeypatch.undo()
    (tmp_path / "killed" / ".short-00000.safetensors.x.part").write_bytes(b"torn")
    build(values, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_build_is_not_repeated(
    tmp_path: Path, two_sources: list[dict[str, Any]]
) -> None:
    build(config(*two_sources), tmp_path / "out")
    before = contents(tmp_path / "out")
    build(config(*two_sources), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_another_configuration_is_refused_by_name(
    tmp_path: Path, two_sources: list[dict[str, Any]]
) -> None:
    values = config(*two_sources)
    build(values, tmp_path / "out")
    with pytest.raises(AllMemError, match="seed: 0, now 5"):
        build(dataclasses.replace(values, seed=5), tmp_path / "out")
    write_rows(tmp_path / "a.jsonl", chats(61))
    with pytest.raises(AllMemError, match="files changed"):
        build(values, tmp_path / "out")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    rows = write_rows(tmp_path / "a.jsonl", chats(2))
    with pytest.raises(AllMemError, match="other files"):
        build(config({"path": str(rows)}), tmp_path)


def test_a_full_disk_is_one_line_and_keeps_what_was_done(
    tmp_path: Path, two_sources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config(*two_sources)
    build(values, tmp_path / "whole")
    calls = 0

    def full(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **options)

    import allmem.files

    real = allmem.files.save_file
    monkeypatch.setattr(allmem.files, "save_file", full)
    with pytest.raises(AllMemError, match="No space left"):
        build(values, tmp_path / "out")
    monkeypatch.undo()
    build(values, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_bad_row_stops_the_build_with_its_line_or_is_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", chats(3))
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(AllMemError, match=r"a\.jsonl, line 4 is not JSON"):
        build(config({"path": str(path)}), tmp_path / "stopped")
    index = build(config({"path": str(path), "name": "a"}, bad_rows="skip"), tmp_path / "out")
    assert index.counts["a"] == {"kept": 3, "bad_row": 1}


def test_every_reason_is_counted(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten " * 100
    rows = [
        {"prompt": "fine?", "response": "fine."},
        {"prompt": "fine?", "response": "FINE. "},
        {"prompt": "no answer", "response": ""},
        {"prompt": "", "response": "no question"},
        {"prompt": "loop", "response": "again and " * 100},
        {"prompt": "broken", "response": "donâ€™t â€œsayâ€\x9d cafÃ© Ã©tÃ©"},
        {"prompt": "secret", "response": "my key is sk-123"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "I begin"}]},
        {"prompt": "x", "response": " ".join(str(i) for i in range(1000))},
        {"prompt": long, "response": "cut, not dropped"},
        {"prompt": "think", "response": "a</think>b"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    filters = {"refuse": ["sk-[0-9]+"]}
    index = build(config({"path": str(path), "name": "a"}, filters=filters), tmp_path / "out")
    assert index.counts["a"] == {
        "kept": 2,
        "duplicate": 1,
        "no_response": 2,
        "no_prompt": 1,
        "repetitive_response": 1,
        "mojibake": 1,
        "refused_pattern": 1,
        "unknown_role": 1,
        "bad_order": 1,
        "response_too_long": 1,
        "altered_by_template": 1,
    }
    assert sum(index.counts["a"].values()) == len(rows)


def test_benchmark_text_is_left_out(tmp_path: Path) -> None:
    known = "the quick brown fox jumps over the lazy dog while seven wise owls watch it"
    exam = write_rows(tmp_path / "exam.jsonl", [{"question": known + " closely"}])
    rows = write_rows(
        tmp_path / "a.jsonl",
        [{"prompt": f"Say: {known}!", "response": "no"}, {"prompt": "Hi", "response": "yes"}],
    )
    values = config({"path": str(rows), "name": "a"}, filters={"exclude": [str(exam)]})
    assert build(values, tmp_path / "out").counts["a"] == {"in_benchmark": 1, "kept": 1}


def test_near_duplicates_are_left_out_where_asked(tmp_path: Path) -> None:
    text = " ".join(str(i * i * i) for i in range(2000, 2060))
    rows = [
        {"prompt": "Tell me.", "response": text},
        {"prompt": "Tell me!", "response": text + "Yes."},
        {"prompt": "Something else entirely", "response": "北方的河流每年春天都会涨水。"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    values = config(
        {"path": str(path), "name": "a"},
        duplicates="near",
        block_rows=1,
        lengths={"long": 2000},
    )
    assert build(values, tmp_path / "out").counts["a"] == {"kept": 2, "near_duplicate": 1}


def test_skip_and_take_choose_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", chats(20))
    build(config({"path": str(path), "name": "a", "skip": 5, "take": 7}), tmp_path / "out")
    assert ids_of(tmp_path / "out") == sorted(f"a#{i}" for i in range(6, 13))


def test_a_missing_or_damaged_shard_is_named(
    tmp_path: Path, two_sources: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "out"
    entry = build(config(*two_sources), folder).shards[1]
    path = folder / entry["file"]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(AllMemError, match=entry["file"] + " was altered"):
        read_shard(folder, entry)
    path.write_bytes(data[:-10])
    with pytest.raises(AllMemError, match=entry["file"] + " has"):
        read_index(folder)
    path.unlink()
    with pytest.raises(AllMemError, match=entry["file"] + " is missing"):
        read_index(folder)


def test_a_folder_without_an_index_is_no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="no data folder"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(AllMemError, match="damaged"):
        read_index(tmp_path)
