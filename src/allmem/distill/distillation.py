"""A step's loss as one module: the batch goes in, sums come out.

Being a module lets every way of training on several devices wrap it. It holds the student, and
through it all that is trained; it changes nothing but the state that one step passes to the next.

Letters: B rows, T slots, R documents as rows, N slots of such a row, n positions that count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from allmem.data.labels import IGNORED
from allmem.distill.beginnings import Beginnings
from allmem.distill.config import DistillConfig
from allmem.distill.evaluate import head_of
from allmem.distill.losses import disagreement_weights, distillation_loss
from allmem.distill.matching import match_layers
from allmem.distill.overlap import begun_aside, has_streams
from allmem.distill.precision import computing
from allmem.distill.rows import absorb_padding
from allmem.distill.segments import read_segments, unpack
from allmem.distill.sizes import Sizes
from allmem.distill.teacher import OwnWeights, Target, Teacher
from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.variants import without_memory

__all__ = ["Distillation"]

Sums = tuple[Tensor, Tensor]
"""What is differentiated, summed over the positions; and the plain divergence, summed."""


class Distillation(nn.Module):
    """The loss of a stage.

    Args:
        student: converted; only its memories get a gradient.
        config: see ``DistillConfig``.
        stage: ``match`` or ``kl``.
        teacher: default: the student's own weights.

    Raises:
        AllMemError: if the base model does something to its logits that distillation does not
            know, or if passes are to overlap on a device without streams.
    """

    student: AllMemForCausalLM

    def __init__(
        self,
        student: AllMemForCausalLM,
        config: DistillConfig,
        stage: str = "kl",
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        # Not as a submodule: what trains on several devices shall neither copy nor cast the frozen
        # weights. Its parameters are the slow weights alone.
        self.__dict__["student"] = student
        self.slow = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in student.memory_parameters().items()}
        )
        if config.overlap_teacher and not has_streams(student.device):
            raise AllMemError(
                f"overlap_teacher = true needs a GPU, and the model is on {student.device}; leave "
                "it out"
            )
        self.settings = config
        self.stage = stage
        with computing(student):
            head = head_of(student)
        self.teacher = OwnWeights(student, head) if teacher is None else teacher
        self.beginnings = Beginnings(student, config)

    def train(self, mode: bool = True) -> Distillation:
        self.student.train(mode)
        return super().train(mode)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        sizes: Sizes,
        step: int = 0,
        **beside: Tensor,
    ) -> Sums:
        """Sums over the labels that count, [] each.

        Args:
            input_ids, labels, position_ids: [B, T]; see ``allmem.distill.rows``.
            sizes: to read with.
            step: of the run; decides which steps begin from a state that is not F_0.
            beside: what else the rows hold, such as a teacher's answers.
        """
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            **beside,
        }
        with computing(self.student):
            return self._sums(batch, sizes, step)

    def _sums(self, batch: dict[str, Tensor], sizes: Sizes, step: int) -> Sums:
        cache = AllMemCache(self.student.config, sizes.config, sizes.chunk)
        segmented = self.settings.segment is not None or self.settings.state_init != "zero"
        if segmented and self.stage != "match":
            return self._unpacked(unpack(batch), cache, step)
        batch = absorb_padding(batch)
        labels = batch["labels"]
        counts = labels[:, 1:] != IGNORED
        if self.stage == "match":
            loss = match_layers(self.student, batch, counts, cache)
            return loss.total, loss.total.detach()
        target = self._target(batch, counts)
        weights = self._weights(batch, counts, target, cache)
        hidden = self.student.hidden_states(
            batch["input_ids"], position_ids=batch["position_ids"], cache=cache
        )
        return self._loss(hidden[:, :-1][counts], target(), labels[:, 1:][counts], weights)

    def _unpacked(self, batch: dict[str, Tensor], cache: AllMemCache, step: int) -> Sums:
        """The same with every document as a row, so that its state can be handed on."""
        labels = batch["labels"]  # [R, N]
        counts = labels[:, 1:] != IGNORED
        target = self._target(batch, counts)
        weights = self._weights(batch, counts, target, cache)
        # Where the positions of a segment lie among all that count.
        ahead = nn.functional.pad(counts, (0, 1))  # [R, N]: the last slot predicts nothing
        index = (ahead.flatten().cumsum(0) - 1).view_as(ahead)
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)

        def loss_of(hidden: Tensor, here: slice) -> Sums:
            chosen = ahead[:, here]
            places = index[:, here][chosen]
            return self._loss(
                hidden[chosen],
                target().select(places),
                shifted[:, here][chosen],
                None if weights is None else weights[places],
            )

        if self.settings.state_init != "zero":
            cache = self.beginnings.begin(cache, len(labels), step)
        sums, end = read_segments(
            self.student, batch, cache, self.settings.segment, loss_of, self.settings.truncate
        )
        if self.settings.state_init == "passed":
            self.beginnings.passed = end
        return sums[0], sums[1]

    def _loss(self, hidden: Tensor, target: Target, labels: Tensor, weights: Tensor | None) -> Sums:
        found = distillation_loss(
            hidden,
            self.student.get_output_embeddings(),
            target,
            self.settings.objective,
            labels,
            weights,
        )
        return found.total, found.kl

    def _target(self, batch: dict[str, Tensor], counts: Tensor) -> Callable[[], Target]:
        """What the teacher answers, once it is asked for."""
        if self.settings.overlap_teacher:
            return begun_aside(lambda: self.teacher(batch, counts), counts.device)
        target = self.teacher(batch, counts)
        return lambda: target

    @torch.no_grad()
    def _weights(
        self,
        batch: dict[str, Tensor],
        counts: Tensor,
        target: Callable[[], Target],
        cache: AllMemCache,
    ) -> Tensor | None:
        """[n], by how much the teacher and the window alone disagree."""
        if self.settings.disagreement is None:
            return None
        with without_memory(self.student):
            window = self.student.hidden_states(
                batch["input_ids"],
                batch.get("attention_mask"),
                batch.get("position_ids"),
                cache=AllMemCache(self.student.config, cache.window),
            )
        return disagreement_weights(
            target(),
            window[:, :-1][counts],
            self.student.get_output_embeddings(),
            self.settings.disagreement,
        )
