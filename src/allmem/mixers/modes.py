"""Token modes: tokens gathered into running means, each joining the most similar one or taking the
place of the one that has waited longest (the memory of CAMELoT, arXiv:2402.13449).

Joins depend on the joins before them, so tokens are written one by one; they are read a block at a
time, each as if just after its own write.

Letters: R rows, K KV heads, G query heads of one, E head size, M modes, B tokens of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.state import State, may_write

__all__ = ["Displaced", "Modes", "read_modes", "write_modes"]

NEVER = -1e30
"""The score of an empty mode: finite, so that reading from nothing gives no NaN."""


@dataclass
class Modes(State):
    """What one sequence leaves behind."""

    means: Tensor
    """[R, K, M, 2 E], the means of the keys and of the values, side by side, in the accumulation
    dtype."""
    counts: Tensor
    """[R, K, M] int32, tokens that joined; 0 for an empty mode."""
    used: Tensor
    """[R, K, M] int32, when the last one came: the position of the token that was read then. All
    are different, and negative where none came."""


@dataclass(frozen=True)
class Displaced:
    """What stood in the modes before each of B writes, and when it could be read."""

    means: Tensor
    """[R, K, B, 2 E]"""
    counts: Tensor
    """[R, K, B]"""
    since: Tensor
    """[R, K, B], the number of the write that had put it there, -1 for what was there before."""
    last: Tensor
    """[R, K, M], the number of the last write of each mode, -1 for none."""


def write_modes(
    pairs: Tensor, leaves: Tensor, positions: Tensor, state: Modes, threshold: float
) -> tuple[Modes, Displaced]:
    """Let tokens join modes or replace them, one after the other.

    Args:
        pairs: [R, K, B, 2 E], their keys and values; 0 where none is written.
        leaves: [R, B] bool, whether one is.
        positions: [R, B], of the tokens that are read then.
        threshold: cosine above which a token joins a mode.
    """
    in_place = may_write(state.means)
    size = pairs.shape[3] // 2
    means, counts, used = state.means, state.counts.clone(), state.used.clone()
    # Keys of length zero, of an empty mode or of no token, are similar to nothing.
    lengths = _inverse(means[..., :size].detach().norm(dim=-1))
    directions = pairs[..., :size].detach()
    directions = directions * _inverse(directions.norm(dim=-1, keepdim=True))
    last = torch.full_like(used, -1)
    old_means, old_counts, since = [], [], []
    for b in range(pairs.shape[2]):
        written = leaves[:, b, None, None]  # [R, 1, 1]
        keys = means[..., :size].detach()
        cosine = (keys @ directions[:, :, b, :, None])[..., 0] * lengths
        # Equal keys may be rounded to a cosine above one.
        best, nearest = cosine.clamp_max(1).max(-1, keepdim=True)
        joins = best > threshold
        target = torch.where(joins, nearest, used.argmin(-1, keepdim=True))  # [R, K, 1]
        place = target[..., None].expand(-1, -1, 1, 2 * size)
        old, count = means.gather(2, place), counts.gather(2, target)
        joined = torch.where(joins, count, 0)
        weight = joined[..., None].to(old.dtype)
        new = (weight * old + pairs[:, :, b : b + 1]) / (weight + 1)
        new = torch.where(written[..., None], new, old)
        old_means.append(old)
        old_counts.append(count)
        since.append(last.gather(2, target))
        last.scatter_(2, target, b)
        lengths.scatter_(2, target, _inverse(new[..., :size].detach().norm(dim=-1)))
        moment = positions[:, b, None, None].to(used.dtype)
        used.scatter_(2, target, torch.where(written, moment, used.gather(2, target)))
        counts.scatter_(2, target, torch.where(written, joined + 1, count))
        means = means.scatter_(2, place, new) if in_place else means.scatter(2, place, new)
    displaced = Displaced(
        torch.cat(old_means, 2), torch.cat(old_counts, 2), torch.cat(since, 2), last
    )
    return Modes(means, counts, used), displaced


def read_modes(
    q: Tensor, state: Modes, displaced: Displaced, top: int | None, per_token: bool
) -> tuple[Tensor, Tensor]:
    """Read a block of tokens, each with the modes as its own write left them.

    Args:
        q: [R, K, B, G, E], with the factor on scores.
        state: after the writes of the block.
        top: modes that a token sees, those with the highest scores; ``None`` for all.
        per_token: whether a mode counts as the tokens that joined it, or as one.

    Returns:
        What the modes give, [R, Q, B, E], and the logarithm of their sum of exp(score), [R, Q, B].
    """
    tokens, group, size = q.shape[2:]
    number = torch.arange(tokens, device=q.device)
    # A token sees a mode as it is after the block unless a later one wrote it, and else what the
    # first of those displaced.
    stays = displaced.last[:, :, None] <= number[:, None]  # [R, K, B, M]
    earlier = (displaced.since[:, :, None] <= number[:, None]) & (number > number[:, None])
    seen = torch.cat([stays, earlier], 3)[:, :, :, None]
    means = torch.cat([state.means, displaced.means], 2)
    counts = torch.cat([state.counts, displaced.counts], 2)
    worth = torch.zeros((), dtype=q.dtype, device=q.device)
    if per_token:
        worth = counts.clamp_min(1).to(q.dtype).log()
    worth = torch.where(counts > 0, worth, NEVER)[:, :, None, None]
    scores = (q.flatten(2, 3) @ means[..., :size].mT).unflatten(2, (tokens, group))
    scores = (scores + worth).masked_fill(~seen, -torch.inf)
    if top is not None and top < state.means.shape[2]:
        least = scores.topk(top, -1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    read = torch.softmax(scores, -1).flatten(2, 3) @ means[..., size:]
    read = read.unflatten(2, (tokens, group)).transpose(2, 3)  # [R, K, G, B, E]
    mass = torch.logsumexp(scores, -1).transpose(2, 3)
    return read.flatten(1, 2), mass.flatten(1, 2)


def _inverse(length: Tensor) -> Tensor:
    """1 / length, 0 for 0."""
    return torch.where(length > 0, 1 / torch.where(length > 0, length, 1), 0)
