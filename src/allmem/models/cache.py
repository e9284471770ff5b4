"""AllMemCache: everything that a batch of sequences has left behind in a model, as one value.

``generate`` uses it like any cache of transformers. It can be copied (``fork``), cut and repeated
along the batch, written to a file and read back in another process.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import Cache

from allmem.config import WindowConfig, check_chunk_fits_window
from allmem.errors import AllMemError
from allmem.files import read_tensors, write_tensors
from allmem.layout import Layout, document_starts
from allmem.mixers.layer import LayerState
from allmem.models.configuration import AllMemConfig

if TYPE_CHECKING:
    from allmem.models.decoding import GraphedDecoder
    from allmem.models.modeling import AllMemForCausalLM

__all__ = ["AllMemCache", "config_key"]

HEAD = 32
"""Token ids that a cache keeps of the beginning of its text."""


def config_key(config: AllMemConfig) -> str:
    """A short hash of what decides the meaning of a state."""
    return hashlib.sha256(json.dumps(config.essence(), sort_keys=True).encode()).hexdigest()[:16]


class AllMemCache(Cache):
    """The state of a batch of sequences, for every layer.

    Args:
        config: of the model that will fill it.
        window, chunk: read with these in place of the configured ones; fixed for the cache's life.

    Raises:
        AllMemError: if the chunk is larger than the window.
    """

    def __init__(
        self, config: AllMemConfig, window: WindowConfig | None = None, chunk: int | None = None
    ) -> None:
        super().__init__(layers=[])
        self.key = config_key(config)
        self.window = window
        self.chunk = chunk
        if chunk is not None and config.chunk is None:
            raise AllMemError(f"chunk = {chunk} was given, but no layer of this model has chunks")
        used_chunk = chunk or config.chunk
        if used_chunk is not None:
            check_chunk_fits_window(used_chunk, (window or config.window_config).window)
        self.states: list[LayerState] | None = None
        """One per layer; ``None`` before the first token."""
        self.seen = torch.zeros(0, dtype=torch.int64)
        """[B] int64, CPU: tokens read by each sequence."""
        self.columns = 0
        """Slots that were fed, padding included: what transformers calls the sequence length."""
        self.head: Tensor | None = None
        """[B, up to HEAD] int64, CPU: the first token ids, to know a text by its beginning."""
        self.decoder: GraphedDecoder | None = None
        """Where single tokens are read by CUDA graphs; it owns the states then."""
        self.note: dict[str, Any] = {}
        """What ``save`` was given to keep beside the state."""

    def __repr__(self) -> str:
        read = f"{len(self.seen)} sequences, {self.columns} slots read, {self.nbytes} bytes"
        return f"AllMemCache({read})"

    # What the model does with it

    def open_call(
        self,
        model: AllMemForCausalLM,
        slots: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        final: bool = False,
    ) -> Layout:
        """Prepare for reading ``slots`` [B, T, ...]; returns where the tokens stand.

        Args:
            final: whether the cache will be dropped after the call.

        Raises:
            AllMemError: if the cache belongs to another model or to another batch size.
        """
        batch, length = slots.shape[:2]
        if self.key != model.cache_key:
            raise AllMemError(
                f"this cache belongs to another model or configuration (key {self.key}, the "
                f"model's is {model.cache_key}); make a new one with AllMemCache(model.config)"
            )
        if self.columns == 0:
            self.seen = torch.zeros(batch, dtype=torch.int64)
        elif len(self.seen) != batch:
            raise AllMemError(
                f"the cache holds {len(self.seen)} sequences, the input has {batch}; use "
                "cache.batch_repeat_interleave or cache.batch_select_indices first"
            )
        documents = None
        if attention_mask is None and position_ids is not None:
            # The convention of transformers: positions that start again mark packed documents.
            documents = document_starts(position_ids.expand(batch, length))
        mask = None if attention_mask is None else self._mask_of_call(attention_mask, length)
        if mask is None and documents is None:
            layout = Layout.dense(self.seen, batch, length, slots.device)
        else:
            layout = Layout.from_grid(self.seen, mask, documents, slots.device)
        # Of packed documents nothing is continued.
        return layout.read_with(self.window, self.chunk, final or documents is not None)

    def close_call(self, layout: Layout, states: list[LayerState], slots: Tensor) -> None:
        """Take over what the call left behind."""
        if self.columns == 0 and slots.dim() == 2:
            self.head = slots[:, :HEAD].cpu()
        self.states = states
        self.columns += slots.shape[1]
        if layout.grid is not None and layout.rows != layout.grid[0]:
            # Packed documents: nothing of them is to be continued.
            self.reset()
        else:
            self.seen = layout.end

    def _mask_of_call(self, mask: Tensor, length: int) -> Tensor | None:
        if mask.dim() != 2 or mask.shape[1] < length:
            raise AllMemError(
                f"attention_mask has the shape {tuple(mask.shape)}; it must be [batch, slots read "
                f"so far + {length}] or [batch, {length}] with 1 for tokens and 0 for padding"
            )
        mask = mask[:, mask.shape[1] - length :].bool().cpu()
        return None if bool(mask.all()) else mask

    # What transformers does with it

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns + query_length, 0

    @property
    def batch_size(self) -> int:
        return len(self.seen) if self.states is not None else -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.states is not None

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was written into memory cannot be taken back.

        Raises:
            AllMemError: always, unless nothing is to be removed.
        """
        if tokens_to_remove:
            raise AllMemError(
                "a memory cannot forget its last tokens (crop, assisted decoding); fork() the "
                "cache before reading what you may want to take back"
            )

    def activate_past_recording(self) -> None:
        """Refused: assisted decoding calls it before it reads what it may take back.

        Raises:
            AllMemError: always.
        """
        self.crop(1)

    def reset(self) -> None:
        """Back to the learned start."""
        self.states = None
        self.seen = torch.zeros(0, dtype=torch.int64)
        self.columns = 0
        self.head = None

    def begins(self, ids: Tensor) -> bool:
        """Whether ``ids`` [B, T] are more of the text that was read, from its first token on."""
        head = self.head
        if head is None or ids.shape[0] != len(head) or ids.shape[1] <= self.columns:
            return False
        return bool(torch.equal(ids[:, : head.shape[1]].cpu(), head))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order (an index may occur more than once)."""
        if self.states is not None:
            rows = indices.long().cpu()
            self.states = [state.select(rows) for state in self.states]
            self.seen = self.seen[rows]
            self.head = None if self.head is None else self.head[rows]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence ``repeats`` times, next to one another."""
        if self.states is not None:
            self.states = [state.repeat(repeats) for state in self.states]
            self.seen = self.seen.repeat_interleave(repeats)
            self.head = None if self.head is None else self.head.repeat_interleave(repeats, 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams of a beam search."""
        self.batch_select_indices(beam_idx)

    # What users do with it

    def fork(self) -> Self:
        """An independent copy: the same past, two futures."""
        return self.with_states(self.states and [state.clone() for state in self.states])

    def with_states(self, states: list[LayerState] | None) -> Self:
        """The same place in the text around other states, one per layer."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.states = states
        twin.decoder = None
        twin.seen = self.seen.clone()
        return twin

    def detach(self) -> None:
        """Cut the autograd history, as between the segments of a long training sample."""
        if self.states is not None:
            self.states = [state.detach() for state in self.states]

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return sum(state.nbytes for state in self.states or [])

    def tensors(self) -> dict[str, Tensor]:
        """All state tensors by name."""
        return {
            f"layers.{i}.{name}": tensor
            for i, state in enumerate(self.states or [])
            for name, tensor in state.tensors().items()
        }

    def save(
        self,
        path: str | os.PathLike[str],
        model: AllMemForCausalLM,
        note: dict[str, Any] | None = None,
    ) -> None:
        """Write the state to one safetensors file.

        Args:
            model: the model that filled the cache; its fingerprint goes into the file.
            note: anything JSON-able to keep beside it (a title, a source).

        Raises:
            AllMemError: if nothing was read yet, or if the file cannot be written.
        """
        if self.states is None:
            raise AllMemError("the cache is empty; read something before saving it")
        header = {
            "key": self.key,
            "model": model.fingerprint(),
            "window": None if self.window is None else self.window.to_dict(),
            "chunk": self.chunk,
            "columns": self.columns,
            "seen": self.seen.tolist(),
            "head": None if self.head is None else self.head.tolist(),
            "note": self.note if note is None else note,
        }
        write_tensors(path, "state", self.tensors(), header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: AllMemForCausalLM) -> AllMemCache:
        """Read a state that ``save`` wrote.

        Raises:
            AllMemError: if the file is truncated or altered, or belongs to another model, to other
                weights or to another configuration.
        """
        tensors, header = read_tensors(path, "state")
        if header["key"] != model.cache_key:
            raise AllMemError(
                f"{path} was saved from a model of another configuration (key {header['key']}, "
                f"this one's is {model.cache_key})"
            )
        if header["model"] != model.fingerprint():
            raise AllMemError(
                f"{path} was saved from other weights (fingerprint {header['model']}, this model's "
                f"is {model.fingerprint()}); load the checkpoint that read the text"
            )
        window = header["window"] and WindowConfig.from_dict(header["window"])
        cache = cls(model.config, window or None, header["chunk"])
        cache.seen = torch.tensor(header["seen"], dtype=torch.int64)
        cache.columns = header["columns"]
        cache.head = None if header["head"] is None else torch.tensor(header["head"])
        cache.note = header["note"]
        template = model.init_states(1, model.device, cache.window, cache.chunk)
        cache.states = [
            state.with_tensors(
                {
                    name: _matching(tensors, f"layers.{i}.{name}", like, path)
                    for name, like in state.tensors().items()
                }
            )
            for i, state in enumerate(template)
        ]
        return cache


def _matching(tensors: dict[str, Tensor], name: str, like: Tensor, path: Any) -> Tensor:
    if name not in tensors:
        raise AllMemError(
            f"{path} lacks the tensor {name}; it was saved by another version of allmem"
        )
    tensor = tensors[name]
    if tensor.dtype != like.dtype:
        raise AllMemError(
            f"{path} was saved from a model in {tensor.dtype}, this one runs in {like.dtype} "
            f"({name}); load the model with dtype={str(tensor.dtype).removeprefix('torch.')!r}"
        )
    return tensor.to(like.device)
