"""The training text: what comes when depends on the seed alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from allmem.data import Sequences, spread_sequences
from allmem.errors import AllMemError


def test_an_epoch_reads_every_piece_once_and_the_next_cuts_anew() -> None:
    document = torch.arange(103)
    sequences = Sequences([document], 10, seed=3)
    epochs = [sorted(int(sequences[i][0]) for i in range(10 * e, 10 * e + 10)) for e in range(4)]
    for starts in epochs:
        assert [b - a for a, b in pairwise(starts)] == [10] * 9
    assert len({tuple(starts) for starts in epochs}) > 1


def test_no_sequence_crosses_documents() -> None:
    documents = [torch.full((25,), 1), torch.full((5,), 2), torch.full((31,), 3)]
    sequences = Sequences(documents, 10)
    pieces = [sequences[i] for i in range(3 * sequences.per_epoch)]
    assert all(len(piece.unique()) == 1 for piece in pieces)
    assert {int(piece[0]) for piece in pieces} == {1, 3}


def test_the_order_is_a_function_of_the_seed() -> None:
    document = torch.arange(500)
    one, same, other = (Sequences([document], 10, seed) for seed in (1, 1, 2))
    # In any order of asking.
    late = [same.batch(i, 3) for i in (60, 7, 60, 0)]
    assert all(torch.equal(one.batch(i, 3), b) for i, b in zip((60, 7, 60, 0), late, strict=True))
    assert not torch.equal(one.batch(0, 20), other.batch(0, 20))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_text_shorter_than_a_sequence_is_an_error() -> None:
    with pytest.raises(AllMemError, match="has 9 tokens, fewer than one sequence of 10"):
        Sequences([torch.arange(9)], 10)
    with pytest.raises(AllMemError, match="held-out text has 9 tokens"):
        spread_sequences(torch.arange(9), 10, 2)


def test_held_out_sequences_lie_evenly() -> None:
    found = spread_sequences(torch.arange(100), 10, 4)
    assert found[:, 0].tolist() == [0, 30, 60, 90]
    assert spread_sequences(torch.arange(25), 10, 8).shape == (2, 10)
