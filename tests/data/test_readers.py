"""Rows of every kind of file become conversations, and a place is enough to go on."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from allmem.data.adapters import conversations, recognise
from allmem.data.config import SourceConfig
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.readers import BadRow, Place, Row, read_rows
from allmem.errors import AllMemError
from tests.data.folders import chats, write_rows


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, thinking: str = "") -> Message:
    return Message("assistant", text, thinking)


def one(row: dict[str, Any], form: str | None = None, **fields: str) -> Conversation:
    made = list(conversations(row, form, fields, "source", 1))
    assert len(made) == 1
    return made[0]


FORMS = {
    "messages": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        (user("q"), assistant("a")),
        None,
    ),
    # nvidia/ChatQA2-Long-SFT-data: the question last, the answers and the document apart.
    "chatqa2": (
        {"messages": [{"role": "user", "content": "q"}], "document": "d", "answers": ["a", "b"]},
        (user("q"), assistant("a")),
        "d",
    ),
    # Mxode/Chinese-Instruct
    "chinese-instruct": (
        {"id": "x", "prompt": "问", "response": "答"},
        (user("问"), assistant("答")),
        None,
    ),
    # teknium/OpenHermes-2.5 and its kin
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ]
        },
        (Message("system", "s"), user("q"), assistant("a")),
        None,
    ),
    "list-for-each-field": (
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
        (user("q"), assistant("a")),
        None,
    ),
    "alpaca": (
        {"instruction": "do", "input": "this", "output": "done"},
        (user("do\n\nthis"), assistant("done")),
        None,
    ),
    "squad": (
        {"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}},
        (user("q"), assistant("a")),
        "c",
    ),
    "hotpot": (
        {"question": "q", "answer": "a", "paragraphs": [{"title": "t", "text": "p"}]},
        (user("q"), assistant("a")),
        "t\np",
    ),
    "openai-parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a", "reasoning_content": "r"},
            ]
        },
        (user("q"), assistant("a", "r")),
        None,
    ),
    "thinking-inside": (
        {"prompt": "q", "response": "<think>\nr\n</think>\n\na"},
        (user("q"), assistant("a", "r")),
        None,
    ),
    "text": ({"text": "t"}, (), "t"),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_recognised_by_their_keys(name: str) -> None:
    row, messages, document = FORMS[name]
    made = one(row)
    assert made.messages == messages
    assert made.document == document


def test_fields_can_be_renamed_also_inside_questions() -> None:
    row = {"transcript": "d", "queries": [{"query": "q", "answer": "a"}, {"query": "r"}]}
    made = one(row, document="transcript", qas="queries", question="query")
    assert made.document == "d"
    assert made.messages == (user("q"), assistant("a"))


def test_several_questions_make_several_conversations() -> None:
    row = {"id": 7, "context": "d", "qas": [{"question": str(i), "answer": i} for i in range(3)]}
    made = list(conversations(row, None, None, "s", 1))
    assert [c.id for c in made] == ["7.0", "7.1", "7.2"]


def test_an_unknown_form_says_what_there_is() -> None:
    with pytest.raises(AllMemError, match="fields height, weight"):
        recognise({"height": 1, "weight": 2})
    with pytest.raises(AllMemError, match="did you mean 'alpaca'"):
        one({"text": "x"}, "alpacca")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no_messages"),
        ({"messages": ["hello"]}, "not_text"),
        ({"messages": [{"role": "user", "content": {"image": 1}}]}, "not_text"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "tool_calls"),
        ({"prompt": "q", "response": None}, "no_response"),
        ({"instruction": "q", "output": " "}, "no_response"),
        ({"question": "q", "context": "", "answer": "a"}, "no_document"),
        ({"conversations": "hello"}, "no_messages"),
    ],
)
def test_rows_that_lack_something_are_dropped_with_a_reason(
    row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Dropped) as caught:
        one(row)
    assert caught.value.reason == reason


def make(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        return
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return
    text = "\n".join(json.dumps(row) for row in rows).encode()
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wb") as file:
        file.write(text)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".json", ".parquet"])
def test_reading_goes_on_behind_any_row(tmp_path: Path, ending: str) -> None:
    rows = chats(11)
    for i, part in enumerate([rows[:5], rows[5:]]):
        make(tmp_path / f"{i}{ending}", part)
    source = SourceConfig(path=str(tmp_path))
    read = list(read_rows(source))
    assert [row.values for row in read if isinstance(row, Row)] == rows
    for i, row in enumerate(read):
        rest = [r.values for r in read_rows(source, row.after) if isinstance(r, Row)]
        assert rest == rows[i + 1 :]


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    with lzma.open(tmp_path / "a.txt.xz", "wb") as file:
        file.write("Läuft.".encode())
    rows = list(read_rows(SourceConfig(path=str(tmp_path / "*.txt.xz"))))
    assert rows[0].values["text"] == "Läuft."  # type: ignore[union-attr]


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n[1]\n\xff\n{"text": "b"}\n')
    rows = list(read_rows(SourceConfig(path=str(path))))
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, Row]
    assert "line 3 is a list" in rows[1].reason  # type: ignore[union-attr]
    assert "line 4 is not JSON" in rows[2].reason  # type: ignore[union-attr]
    assert rows[3].after == Place(0, 5)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.xz", ".parquet", ".json"])
def test_a_damaged_file_is_one_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    make(path, chats(200))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(AllMemError, match=path.name):
        list(read_rows(SourceConfig(path=str(path))))


def test_a_packed_file_with_wrong_bytes_inside_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    make(path, chats(200))
    packed = bytearray(path.read_bytes())
    packed[40:80] = bytes(40)
    path.write_bytes(packed)
    with pytest.raises(AllMemError, match=r"a\.jsonl\.gz is damaged"):
        list(read_rows(SourceConfig(path=str(path))))


@pytest.mark.parametrize(
    ("name", "says"),
    [("none.jsonl", "no file"), ("a.xlsx", "cannot be read"), ("empty", "holds no")],
)
def test_a_wrong_path_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AllMemError, match=says):
        list(read_rows(SourceConfig(path=str(tmp_path / name))))


def test_a_hub_data_set_streams_and_goes_on(tmp_path: Path) -> None:
    """A folder of the form of the hub stands in for it: the same loading code."""
    (tmp_path / "hub").mkdir()
    rows = chats(9)
    write_rows(tmp_path / "hub" / "train.jsonl", rows)
    source = SourceConfig(hub=str(tmp_path / "hub"))
    read = list(read_rows(source))
    assert [row.values for row in read] == rows  # type: ignore[union-attr]
    assert [r.values for r in read_rows(source, read[3].after)] == rows[4:]  # type: ignore[union-attr]


def test_a_hub_data_set_out_of_reach_is_one_line() -> None:
    with pytest.raises(AllMemError, match="cannot read the data set nobody/nothing"):
        list(read_rows(SourceConfig(hub="nobody/nothing")))
