"""On-policy rows: prompts with the responses that the student gives as it is now.

trl's trainers for this (``GKDTrainer``, ``DistillationTrainer``) do not fit: their teacher is a
second model that is called like the student, while ours is the student's own weights under another
attention; and their steps know neither packed documents and drawn sizes nor resumption to the bit.
So only the rows are made here, and ``StageTrainer`` learns from them as from any others.

Row ``i`` is a function of the weights, ``i`` and the seed alone, so a run that was cut off meets
the same rows again.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence

from torch.utils.data import get_worker_info

from allmem.distill.precision import computing
from allmem.distill.prompts import Prompts, read_prompts
from allmem.distill.responder import MAX_NEW_TOKENS, Responder
from allmem.distill.responses import response_row
from allmem.distill.rows import Row, Rows
from allmem.errors import AllMemError
from allmem.opening import OpenedModel
from allmem.reading import recommended_sampling
from allmem.schema import check_positive

__all__ = ["OnlineRows", "online_rows"]


class OnlineRows:
    """Row ``i`` is prompt ``i`` mod n and the response to it, which is learned.

    Args:
        responder: the student and how it answers; its slow weights may be in training.
        prompts: at least one.
        together: rows of this process that are generated at once, from the same weights. Give the
            rows of a step: then every step learns from responses of the weights that it changes,
            and a resumed run generates the same batches.
        share: of the rows that are on-policy, drawn by their number (GKD's lambda,
            arXiv:2306.13649); the others are those of ``fixed``.
        fixed: another source of rows.

    Raises:
        AllMemError: on a share that is none, or that leaves rows which nothing gives.
    """

    def __init__(
        self,
        responder: Responder,
        prompts: Prompts,
        *,
        together: int = 1,
        share: float = 1.0,
        fixed: Rows | None = None,
    ) -> None:
        check_positive(together=together)
        if not 0 < share <= 1:
            raise AllMemError(f"share = {share} must lie above 0 and up to 1")
        if (share < 1) != (fixed is not None):
            raise AllMemError(
                f"share = {share} of the rows are on-policy; name other data for the rest, and "
                "only then"
            )
        self.responder, self.prompts = responder, prompts
        self.together, self.share, self.fixed = together, share, fixed
        sizes = [len(prompt.ids) + responder.max_new_tokens for prompt in prompts.listed]
        self.longest = max(sizes)
        self.mean = sum(sizes) / len(sizes)
        """At most: how long responses will be is not known."""
        if fixed is not None:
            self.longest = max(self.longest, fixed.longest)
            self.mean = share * self.mean + (1 - share) * fixed.mean

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        """See ``Rows``.

        Raises:
            AllMemError: in a process that reads data ahead, whose weights never change.
        """
        if get_worker_info() is not None:
            raise AllMemError("on-policy rows cannot be made ahead of their step; set workers = 0")
        fixed = None if self.fixed is None else self.fixed.read(first, rank, world)
        number = first + rank
        while True:
            numbers = [number + i * world for i in range(self.together)]
            own = [i for i in numbers if self._is_on_policy(i)]
            made = dict(zip(own, self.respond(own), strict=True))
            for i in numbers:
                # Read in any case: row i of the fixed data is row i here, or none.
                other = None if fixed is None else next(fixed)
                row = made.get(i, other)
                assert row is not None
                yield row
            number += self.together * world

    def respond(self, numbers: Sequence[int]) -> list[Row]:
        """These rows, on-policy, by the weights as they are now."""
        if not numbers:
            return []
        listed = self.prompts.listed
        asked = [listed[i % len(listed)].ids for i in numbers]
        with computing(self.responder.opened.model):
            responses = self.responder(asked, numbers)
        return [response_row(*pair) for pair in zip(asked, responses, strict=True)]

    def _is_on_policy(self, number: int) -> bool:
        drawn = random.Random(f"{self.responder.sampling.seed} on-policy {number}").random()
        return drawn < self.share

    def fingerprint(self) -> str:
        fixed = "" if self.fixed is None else f", else {self.fixed.fingerprint()}"
        how = self.responder
        return (
            f"{self.share:g} on-policy: {len(self.prompts)} prompts {self.prompts.fingerprint()}, "
            f"{how.sampling}, up to {how.max_new_tokens} tokens{fixed}"
        )


def online_rows(
    opened: OpenedModel,
    files: Sequence[str],
    *,
    length: int,
    evaluated: int,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    thinking: bool = False,
    together: int = 1,
    share: float = 1.0,
    fixed: Rows | None = None,
) -> tuple[OnlineRows, list[Row]]:
    """On-policy rows of prompts in files, sampled as the model's makers recommend; and held-out
    ones: what the student answers now, before training, to the last prompts.

    Args:
        opened: the student, with the weights that the run begins from, also when it is resumed.
        files: see ``read_prompts``.
        length: tokens of the longest row; longer prompts leave no room and are skipped.
        evaluated: held-out rows, if there are prompts enough.
        seed: of all responses.
        together, share, fixed: see ``OnlineRows``.

    Raises:
        AllMemError: if there are fewer than two prompts, or no room for any.
    """
    if length <= max_new_tokens:
        raise AllMemError(
            f"length = {length} leaves no room for a prompt beside a response of up to "
            f"{max_new_tokens} tokens; raise it, or lower max_new_tokens"
        )
    longest = length - max_new_tokens
    prompts = read_prompts(files, opened.tokenizer, thinking=thinking, longest=longest)
    if prompts.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in prompts.skipped.items())
        warnings.warn(f"{len(prompts)} prompts; skipped: {reasons}", stacklevel=2)
    if len(prompts) == 1:
        raise AllMemError("one prompt is not enough: another is needed to be judged by")
    back = min(evaluated, max(len(prompts) // 5, 1))
    sampling = recommended_sampling(opened.model, seed=seed, thinking=thinking)
    responder = Responder(opened, prompts.end, sampling, max_new_tokens)
    judged = OnlineRows(responder, prompts.part(slice(-back, None)))
    learned = prompts.part(slice(None, -back))
    rows = OnlineRows(responder, learned, together=together, share=share, fixed=fixed)
    return rows, judged.respond(range(back))
