"""Every row comes once an epoch, in an order that only the seed decides, and from any point on."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import allmem
from allmem.data.labels import IGNORED
from allmem.data.stream import RowStream, collate
from allmem.errors import AllMemError
from allmem.layout import document_starts
from tests.data.folders import build, chats, config, write_rows
from tests.models.tiny import BASES, C, S, V, W


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    rows = chats(80)
    for i in range(12):
        rows.append({"prompt": f"{i} " + "river water " * 100, "response": "yes"})
    path = write_rows(root / "a.jsonl", rows)
    build(config({"path": str(path)}, pack=False), root / "out")
    return root / "out"


def keys(rows: Any) -> list[tuple[int, ...]]:
    return [tuple(row["input_ids"].tolist()) for row in rows]


def test_an_epoch_holds_every_row_once_and_the_next_in_another_order(folder: Path) -> None:
    stream = RowStream(folder, epochs=2)
    total = sum(stream.rows.values())
    rows = keys(stream)
    assert len(rows) == 2 * total
    assert len(set(rows)) == total
    for name, count in Counter(rows).items():
        assert count == 2, name
    assert set(rows[:total]) == set(rows[total:])
    assert rows[:total] != rows[total:]


@pytest.mark.parametrize("read", [0, 1, 17, 150])
def test_a_restored_stream_goes_on_with_the_very_next_row(folder: Path, read: int) -> None:
    mix = {"short": 3, "long": 1}
    whole = keys(islice(RowStream(folder, mix, seed=3), read + 20))
    first = RowStream(folder, mix, seed=3)
    list(islice(first, read))
    second = RowStream(folder, mix, seed=3)
    second.load_state_dict(first.state_dict())
    assert keys(islice(second, 20)) == whole[read:]


def test_the_ratio_is_kept_at_every_point(folder: Path) -> None:
    stream = RowStream(folder, {"short": 3, "long": 1})
    for n, _ in enumerate(islice(stream, 200), 1):
        assert abs(stream.drawn["long"] - n / 4) <= 1


def test_epochs_end_before_the_scarcer_class_repeats(folder: Path) -> None:
    stream = RowStream(folder, {"short": 1, "long": 1}, epochs=1)
    count = len(list(stream))
    assert abs(count - 2 * min(stream.rows.values())) <= 1


def test_processes_share_the_order(folder: Path) -> None:
    whole = keys(islice(RowStream(folder), 60))
    parts = [keys(islice(RowStream(folder, rank=r, world=3), 20)) for r in range(3)]
    assert [row for step in zip(*parts, strict=True) for row in step] == whole


def test_the_seed_decides_the_order(folder: Path) -> None:
    assert keys(islice(RowStream(folder, seed=1), 20)) == keys(
        islice(RowStream(folder, seed=1), 20)
    )
    assert keys(islice(RowStream(folder, seed=1), 20)) != keys(
        islice(RowStream(folder, seed=2), 20)
    )


def test_labels_are_the_tokens_of_responses(folder: Path) -> None:
    for row in islice(RowStream(folder), 10):
        learned = row["labels"] != IGNORED
        assert learned.any()
        assert torch.equal(row["labels"][learned], row["input_ids"][learned])
        assert row["position_ids"][0] == 0


def test_a_batch_marks_padding_as_a_document_of_its_own(folder: Path) -> None:
    rows = [{k: torch.arange(n) for k in ("input_ids", "labels", "position_ids")} for n in (3, 6)]
    batch = collate(rows, pad=9)
    assert batch["input_ids"].tolist()[0] == [0, 1, 2, 9, 9, 9]
    assert batch["labels"].tolist()[0] == [0, 1, 2, IGNORED, IGNORED, IGNORED]
    starts = document_starts(batch["position_ids"])
    assert starts is not None
    assert starts.long().tolist() == [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_a_packed_document_is_read_as_if_it_were_alone(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", chats(12))
    build(config({"path": str(rows)}), tmp_path / "out")
    base = AutoModelForCausalLM.from_config(BASES["qwen3"]())
    model = allmem.convert(base, window=W, sinks=S, chunk=C).double().eval()
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            if name.endswith("alpha"):
                parameter.normal_()
        long, short = sorted(
            islice(RowStream(tmp_path / "out"), 4), key=lambda row: -len(row["input_ids"])
        )[::3]
        batch = collate([long, short])
        ids = batch["input_ids"] % V
        packed = model(ids, position_ids=batch["position_ids"], use_cache=False).logits[0]
        starts = (long["position_ids"] == 0).nonzero()[:, 0].tolist()
        assert len(starts) > 1
        for begin, end in pairwise([*starts, len(long["input_ids"])]):
            alone = model(ids[:1, begin:end], use_cache=False).logits[0]
            assert torch.allclose(packed[begin:end], alone, atol=1e-8)


def test_a_state_of_other_data_or_another_order_is_refused(folder: Path) -> None:
    state = RowStream(folder, seed=1).state_dict()
    with pytest.raises(AllMemError, match="seed was 1, now it is 2"):
        RowStream(folder, seed=2).load_state_dict(state)
    with pytest.raises(AllMemError, match="data was"):
        RowStream(folder, seed=1).load_state_dict({**state, "data": "other"})


def test_an_unknown_class_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(AllMemError, match="did you mean 'short'"):
        RowStream(folder, {"shor": 1})
