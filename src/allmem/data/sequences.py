"""Plain text cut into sequences of one length, in an order that only the seed decides.

What a run reads at a step is a function of the seed and of how many sequences were read before, so
a run that was cut off goes on with the same text. Knows nothing of models.

Letters: B sequences of a batch, T tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from allmem.errors import AllMemError

__all__ = ["Sequences", "spread_sequences"]


class Sequences:
    """Random sequences of documents, each document cut anew in every epoch.

    Args:
        documents: token ids, one tensor [tokens] each; no sequence crosses from one into the next.
        length: T.
        seed: decides cuts and order.

    Raises:
        AllMemError: if no document holds a whole sequence.
    """

    def __init__(self, documents: Sequence[Tensor], length: int, seed: int = 0) -> None:
        self.documents = [d for d in documents if len(d) >= length]
        self.length = length
        self.seed = seed
        if not self.documents:
            longest = max((len(d) for d in documents), default=0)
            raise AllMemError(
                f"the text has {longest} tokens, fewer than one sequence of {length}; give a "
                "longer text or a smaller length"
            )
        self.per_epoch = sum(len(d) // length for d in self.documents)
        self._epoch: tuple[int, list[tuple[int, int]]] | None = None

    def batch(self, first: int, size: int) -> Tensor:
        """Sequences number ``first`` to ``first + size - 1``, [B, T]."""
        return torch.stack([self[i] for i in range(first, first + size)])

    def __getitem__(self, index: int) -> Tensor:
        """Sequence number ``index``, counted over all epochs: [T]."""
        epoch, place = divmod(index, self.per_epoch)
        document, start = self._order(epoch)[place]
        return self.documents[document][start : start + self.length]

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """(document, start) of every sequence of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            places = []
            for i, document in enumerate(self.documents):
                count, rest = divmod(len(document), self.length)
                offset = int(torch.randint(rest + 1, (1,), generator=generator))
                places += [(i, offset + j * self.length) for j in range(count)]
            order = torch.randperm(len(places), generator=generator).tolist()
            self._epoch = (epoch, [places[i] for i in order])
        return self._epoch[1]

    def fingerprint(self) -> str:
        """A short hash of the text, the length and the seed: what a resumed run must agree on."""
        digest = hashlib.sha256(f"{self.length} {self.seed}".encode())
        for document in self.documents:
            digest.update(document.numpy().tobytes())
        return digest.hexdigest()[:16]


def spread_sequences(document: Tensor, length: int, count: int) -> Tensor:
    """Up to ``count`` sequences that lie evenly over a document, [B, T]: for evaluation.

    Raises:
        AllMemError: if the document is shorter than one sequence.
    """
    available = len(document) // length
    if available == 0:
        raise AllMemError(
            f"the held-out text has {len(document)} tokens, fewer than one sequence of {length}"
        )
    count = min(count, available)
    stride = (len(document) - length) // max(count - 1, 1)
    return torch.stack([document[i * stride : i * stride + length] for i in range(count)])
