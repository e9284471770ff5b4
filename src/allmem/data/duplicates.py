"""What was seen before: equal conversations, and optionally nearly equal ones.

What was seen is a value that can be written and read back, so that an interrupted build knows it.
Near duplicates are found by MinHash and locality-sensitive hashing (datasketch) over pieces of five
characters, which works for text with and without spaces between words.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from allmem.data.conversation import Conversation, Dropped
from allmem.data.readers import needed

__all__ = ["Seen"]

PERMUTATIONS = 64
PIECE = 5
MOST_PIECES = 20_000
"""Pieces of a long text that are hashed: evenly spread over it."""


class Seen:
    """Remembers conversations.

    Args:
        mode: ``exact``: equal up to case and white space; ``near``: similar too; ``keep``: nothing.
        similarity: Jaccard similarity from which two conversations count as alike.
    """

    def __init__(
        self, mode: Literal["near", "exact", "keep"] = "exact", similarity: float = 0.8
    ) -> None:
        self.mode = mode
        self.keys: set[bytes] = set()
        self._new: list[bytes] = []
        self._new_hashes: list[Any] = []
        self._index: Any = None
        if mode == "near":
            self._sketch = needed("datasketch", "datasketch")
            self._index = self._sketch.MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
            self._count = 0

    def check(self, conversation: Conversation) -> None:
        """Remember a conversation.

        Raises:
            Dropped: if it, or one like it, was seen before.
        """
        if self.mode == "keep":
            return
        key = conversation.key()
        if key in self.keys:
            raise Dropped("duplicate")
        if self._index is not None:
            sketch = self._minhash(conversation)
            if self._index.query(sketch):
                raise Dropped("near_duplicate")
            self._insert(sketch)
            self._new_hashes.append(sketch.hashvalues)
        self.keys.add(key)
        self._new.append(key)

    def take_new(self) -> dict[str, Tensor]:
        """What was seen since the last call, as tensors: ``keys`` [N, 16] uint8 and, for near
        duplicates, ``sketches`` [N, permutations] int64."""
        keys = np.frombuffer(b"".join(self._new), dtype=np.uint8).reshape(-1, 16).copy()
        new = {"keys": torch.from_numpy(keys)}
        if self._index is not None:
            hashes = np.array(self._new_hashes, dtype=np.int64).reshape(-1, PERMUTATIONS)
            new["sketches"] = torch.from_numpy(hashes)
        self._new, self._new_hashes = [], []
        return new

    def restore(self, seen: dict[str, Tensor]) -> None:
        """Add what an earlier run saw."""
        self.keys.update(bytes(row) for row in seen["keys"].numpy())
        if self._index is not None:
            for hashes in seen["sketches"].numpy():
                sketch = self._sketch.MinHash(PERMUTATIONS, seed=1)
                sketch.hashvalues = hashes.astype(sketch.hashvalues.dtype)
                self._insert(sketch)

    def _insert(self, sketch: Any) -> None:
        self._index.insert(self._count, sketch)
        self._count += 1

    def _minhash(self, conversation: Conversation) -> Any:
        text = " ".join(" ".join(t.lower().split()) for t in conversation.texts())
        step = max(1, len(text) // MOST_PIECES)
        pieces = {
            text[i : i + PIECE].encode() for i in range(0, max(1, len(text) - PIECE + 1), step)
        }
        sketch = self._sketch.MinHash(PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(pieces))
        return sketch
