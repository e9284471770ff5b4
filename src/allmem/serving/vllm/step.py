"""Where the tokens of one step stand: from vLLM's metadata to our groups.

vLLM's scheduler decides in every step which sequences take how many tokens, some of them one, some
a piece of a prompt that ends anywhere. All counts are on the CPU: they are exact there as long as
nothing is speculated.

Letters: R sequences of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import mamba_get_block_table_tensor

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.mixers.layer import LayerMixer
from allmem.models.compiled import compiled_mix
from allmem.models.flat import Group
from allmem.models.layer import Mix
from allmem.serving.vllm import STATE_KIND
from allmem.token_layout import TokenLayout, periods_that_end

__all__ = ["StateBackend", "Step", "reads_in_place"]


@dataclass(frozen=True)
class Step:
    """The sequences of a step; all [R] int64, CPU."""

    first: Tensor
    """The flat slot of each sequence's first token."""
    lengths: Tensor
    """Tokens that it takes, one at least."""
    read: Tensor
    """Tokens that it took in earlier steps."""
    slots: Tensor
    """Where its state is kept."""

    @property
    def beginning(self) -> list[int]:
        """The slots of sequences of which nothing was read: new ones, and those that were preempted
        and are read again."""
        slots: list[int] = self.slots[self.read == 0].tolist()
        return slots

    def groups(
        self,
        device: torch.device,
        window: WindowConfig | None,
        chunk: int | None,
        compiled: frozenset[int] | None = None,
    ) -> list[Group]:
        """The sequences that are read together.

        Args:
            window, chunk: to read with in place of the configured ones.
            compiled: the ``periods`` of all layers, if those read single tokens in compiled code.
        """
        groups = []
        for rows in self._alike(reads_in_place(device), compiled is not None):
            read, lengths = self.read[rows], self.lengths[rows]
            layout = Layout.ragged(read, lengths, device).read_with(window, chunk)
            mix: Mix = LayerMixer.forward
            if compiled is not None and layout.slots == 1:
                closing = periods_that_end(compiled, read)
                layout = TokenLayout.next_of(read.to(device), window, chunk, closing)
                mix = compiled_mix
            groups.append(Group(self.first[rows], layout, self.slots[rows], mix))
        return groups

    def _alike(self, in_place: bool, compiled: bool) -> Iterable[Tensor]:
        """Those that take as many tokens, by slot.

        Args:
            in_place: only neighbours, and of compiled layers, of which each number of rows has code
                of its own, each row by itself.
        """
        rows = torch.from_numpy(np.lexsort((self.slots, self.lengths)))
        lengths, slots = self.lengths[rows], self.slots[rows]
        apart = lengths.diff() != 0
        if in_place:
            apart |= (slots.diff() != 1) | compiled
        return rows.tensor_split(apart.nonzero()[:, 0] + 1)


def reads_in_place(device: torch.device) -> bool:
    """Whether only sequences in neighbouring slots are read together, where their states lie.

    Otherwise states are copied side by side and back. A GPU is bound by the number of its
    operations and has memory to spare; on a CPU copying takes longer than it saves, even beside
    reading every sequence by itself: 1.3 to 1.5 times as long for 2 to 32 sequences with 4.6 MiB a
    layer.
    """
    return device.type == "cpu"


class StateBackend(AttentionBackend):
    """What vLLM looks up by the kind of a state; all of it but the builder is in the mixers."""

    @staticmethod
    def get_name() -> str:
        return STATE_KIND

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("a converted model's layers compute their attention themselves")

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        return StepBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        return True


class StepBuilder(AttentionMetadataBuilder):
    """Makes a ``Step`` of vLLM's metadata."""

    # Which chunks end is decided on the CPU.
    _cudagraph_support = AttentionCGSupport.NEVER

    def __init__(self, *args: Any) -> None:
        # It is abstract in vLLM, and does all that is needed there.
        super().__init__(*args)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Step:
        common = common_attn_metadata
        table = mamba_get_block_table_tensor(
            common.block_table_tensor,
            common.seq_lens,
            self.kv_cache_spec,
            self.vllm_config.cache_config.mamba_cache_mode,
        )
        first = common.query_start_loc_cpu.long()
        lengths = first.diff()
        read = common.seq_lens_cpu_upper_bound.long() - lengths
        # Without those that only fill up the batch.
        real = lengths > 0
        return Step(first[:-1][real], lengths[real], read[real], table[:, 0].long().cpu()[real])
