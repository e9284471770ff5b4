"""Who is imitated: the student's own weights with full attention, another model, or what a teacher
said before.

A teacher turns a batch into a ``Target`` for the positions that count. Knows nothing of training.

Letters: B rows, T slots, D hidden size, n positions that count, k words kept of a distribution.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allmem.distill.evaluate import head_of
from allmem.distill.targets import FullTarget, Head, TopTarget
from allmem.errors import AllMemError
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["OtherModel", "OwnWeights", "Stored", "Target", "Teacher"]

Target = FullTarget | TopTarget


class Teacher(Protocol):
    """Answers for the positions of a batch that count."""

    def __call__(self, batch: dict[str, Tensor], counts: Tensor) -> Target:
        """
        Args:
            batch: ``input_ids`` [B, T], ``position_ids`` [B, T] that restart with each document,
                perhaps ``attention_mask`` [B, T], and what the rows bring beside.
            counts: [B, T - 1] bool, the positions whose next token counts.
        """
        ...


class OwnWeights:
    """The frozen weights of the student itself, read with full attention and without memories: one
    model in memory (as AHN does)."""

    def __init__(self, student: AllMemForCausalLM, head: Head) -> None:
        self.student, self.head = student, head

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], counts: Tensor) -> Target:
        # Before the pass, since counting waits for what the device has to do.
        places = counts.nonzero(as_tuple=True)
        hidden = self.student.hidden_states(
            batch["input_ids"],
            batch.get("attention_mask"),
            batch["position_ids"] if "attention_mask" not in batch else None,
            full_attention=True,
        )
        return FullTarget(hidden[:, :-1][places], self.head)


class OtherModel:
    """A model of its own, perhaps on another device, with the same vocabulary.

    Args:
        model: a plain or a converted one (which then answers with its memories).

    Raises:
        AllMemError: if its vocabulary is not the student's.
    """

    def __init__(self, model: PreTrainedModel, student: AllMemForCausalLM) -> None:
        own, other = (m.get_input_embeddings().num_embeddings for m in (student, model))
        if own != other:
            raise AllMemError(
                f"the teacher has {other} words, the student {own}: a teacher must share the "
                "student's tokenizer"
            )
        self.model = model.eval().requires_grad_(False)
        self.plain = not isinstance(model, AllMemForCausalLM)
        self.head = head_of(model)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], counts: Tensor) -> Target:
        device = self.model.device
        ids = batch["input_ids"].to(device)
        mask = batch.get("attention_mask")
        positions = None if mask is not None else batch["position_ids"].to(device)
        mask = None if mask is None else mask.to(device)
        if self.plain:
            base: Any = self.model.base_model
            output = base(ids, attention_mask=mask, position_ids=positions, use_cache=False)
            hidden = output.last_hidden_state
        else:
            hidden = self.model.hidden_states(ids, mask, positions)
        return FullTarget(hidden[:, :-1][counts.to(device)].to(counts.device), self._head)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits on the student's device, worked out on the teacher's."""
        return self.head(hidden.to(self.model.device)).to(hidden.device)


class Stored:
    """The likeliest words that a teacher gave for every token, from ``allmem data teach``: rows
    with ``teacher_ids`` and ``teacher_log_probs``, [T, k], of the token *at* a slot."""

    def __call__(self, batch: dict[str, Tensor], counts: Tensor) -> Target:
        if "teacher_ids" not in batch:
            raise AllMemError(
                "the data holds no teacher's answers; make them with `allmem data teach`, or "
                "choose another teacher"
            )
        ids, log_probs = (batch[f"teacher_{n}"][:, 1:][counts] for n in ("ids", "log_probs"))
        return TopTarget(ids, log_probs)
