"""The projections around the memory: how they start from the attention's weights, and how many of
their parameters are new.

A memory head of size d stands beside one KV head of the attention and its group of query heads,
each of size E. Its d slots are cut into tiles of E: a KV head is repeated on every tile, the query
heads of the group are dealt out over the tiles, several on one tile are averaged, and one head is
repeated where there are more tiles than heads. So slot s of a query and slot s of a key always stem
from the same feature of their heads, and the memory starts with the similarities that the attention
learned.

Letters: R rows, N slots of a call, D hidden size, H memory heads, d head size (of queries and keys;
dv of values, where it may differ), Q query heads, K KV heads, E their head size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import ProjectionOptions
from allmem.errors import AllMemError
from allmem.layout import Layout

__all__ = [
    "AttentionWeights",
    "Beside",
    "Features",
    "Leaving",
    "Narrowing",
    "Projections",
    "Wanted",
    "Written",
]


@dataclass(frozen=True)
class AttentionWeights:
    """Shapes of an attention and, where they are at hand, its weights as plain matrices."""

    query_heads: int
    kv_heads: int
    head_dim: int
    q: Tensor | None = None  # [Q E, D]
    k: Tensor | None = None  # [K E, D]
    v: Tensor | None = None  # [K E, D]
    o: Tensor | None = None  # [D, Q E]
    window: int | None = None
    """W, where it is a window's: what a memory forgets sooner is of no use beside it."""


class Wanted(IntEnum):
    """How much a memory has to know of the attention beside it; each with all before it."""

    NOTHING = 0
    FEATURES = 1
    """What it projected: ``Features``."""
    LEAVING = 2
    """Which keys and values its window lost: ``Features.leaving``."""
    BESIDE = 3
    """What it read, and what its softmax was divided by: ``Features.beside``."""


@dataclass(frozen=True)
class Leaving:
    """What the window loses in this call: with each slot's token the one W before it."""

    k: Tensor
    """[R, K, N, E], before RoPE; at least fp32, and anything where no token leaves."""
    v: Tensor
    """[R, K, N, E]."""
    leaves: Tensor
    """[R, N] bool, whether one does that is not a sink."""


@dataclass(frozen=True)
class Beside:
    """What a window attention did in this call, for a memory that joins its softmax."""

    read: Tensor
    """[R, Q, N, E], what every head read, before the output projection; padding slots hold 0."""
    mass: Tensor
    """[R, Q, N], the logarithm of what its softmax was divided by; at least fp32."""
    q: Tensor
    """[R, Q, N, E], its queries for keys that stand just before the window, as the sinks do, and
    are not rotated; with the factor on scores."""


@dataclass(frozen=True)
class Features:
    """What the attention projected in this call, before RoPE, and its output projection."""

    q: Tensor  # [R, N, Q E]
    k: Tensor  # [R, N, K E]
    v: Tensor  # [R, N, K E]
    output: Tensor  # [D, Q E], a weight
    leaving: Leaving | None = None  # these two for mixers that ask for them
    beside: Beside | None = None


class Narrowing(nn.Module):
    """A linear map of a hidden state that goes through few numbers: all that has to be kept of the
    hidden state where it is mapped later."""

    size: int
    """How many."""

    @abstractmethod
    def narrow(self, x: Tensor) -> Tensor:
        """[..., D] to [..., size]."""

    @abstractmethod
    def widen(self, z: Tensor) -> Tensor:
        """The rest of the way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.narrow(x))


@dataclass(frozen=True)
class Written:
    """The tokens that a call writes."""

    x: Tensor | None
    """[R, N, D]: the hidden state that slot i writes, 0 where it writes none; ``None`` if only what
    maps made of it was kept."""
    keep: Tensor | None = None
    """[R, N] bool: whether it writes one; ``None`` where all do."""
    narrowed: Mapping[Narrowing, Tensor] = field(default_factory=dict)
    """[R, N, size] of each of those maps, where there is no x."""

    def mapped(self, by: nn.Module) -> Tensor:
        """What a map makes of the hidden states; where they were not kept, one of ``narrowed``."""
        if self.x is not None:
            mapped: Tensor = by(self.x)
            return mapped
        assert isinstance(by, Narrowing)
        return by.widen(self.narrowed[by])


class Laying:
    """A sparse linear map between attention features and memory slots: every output is the mean of
    the same small number of inputs (or nothing).

    Called with [..., F] it gives [..., outputs]; ``matrix`` is the same map as a dense matrix.
    """

    def __init__(self, sources: list[list[int]], inputs: int) -> None:
        self.sources = sources
        self.inputs = inputs
        self.identity = sources == [[i] for i in range(inputs)]
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def _tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and weights of every output, [outputs, most]. Made on demand and on the CPU, since
        a model may be constructed on the meta device."""
        most = max(len(s) for s in self.sources)
        index = [s + [0] * (most - len(s)) for s in self.sources]
        weight = [
            [1 / len(s)] * len(s) + [0.0] * (most - len(s)) if s else [0.0] * most
            for s in self.sources
        ]
        return torch.tensor(index, device="cpu"), torch.tensor(weight, device="cpu")

    def matrix(self) -> Tensor:
        """[outputs, inputs], fp32, on the CPU."""
        index, weight = self._tensors()
        dense = torch.zeros(len(self.sources), self.inputs, device="cpu")
        return dense.scatter_add_(1, index, weight)

    def inverse(self) -> Laying:
        """From slots back to features: a feature takes the mean of the slots that it was laid
        on."""
        back: list[list[int]] = [[] for _ in range(self.inputs)]
        for output, inputs in enumerate(self.sources):
            for i in inputs:
                back[i].append(output)
        return Laying(back, len(self.sources))

    def __call__(self, x: Tensor) -> Tensor:
        if self.identity:
            return x
        where = (x.device, x.dtype)
        if where not in self._placed:
            index, weight = self._tensors()
            self._placed[where] = index.to(x.device), weight.to(x.device, x.dtype)
        index, weight = self._placed[where]
        terms = [x[..., index[:, i]] * weight[:, i] for i in range(index.shape[1])]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def lay_query_heads(heads: int, head_dim: int, attention: AttentionWeights) -> Laying:
    """Query heads over memory slots: averaged where several share a tile."""
    sources = []
    for head in range(heads):
        group = _query_group(head, heads, attention)
        tiles = -(-head_dim // attention.head_dim)
        for slot in range(head_dim):
            tile, feature = divmod(slot, attention.head_dim)
            on_tile = [g for i, g in enumerate(group) if i % tiles == tile]
            on_tile = on_tile or [group[tile % len(group)]]
            sources.append([g * attention.head_dim + feature for g in on_tile])
    return Laying(sources, attention.query_heads * attention.head_dim)


def lay_kv_heads(heads: int, head_dim: int, attention: AttentionWeights) -> Laying:
    """KV heads over memory slots: repeated on every tile, cut at d."""
    sources = []
    for head in range(heads):
        group = _kv_group(head, heads, attention)
        for slot in range(head_dim):
            feature = slot % attention.head_dim
            sources.append([g * attention.head_dim + feature for g in group])
    return Laying(sources, attention.kv_heads * attention.head_dim)


def _kv_group(head: int, heads: int, attention: AttentionWeights) -> list[int]:
    """The KV heads that memory head ``head`` stands beside: one, unless there are fewer memory
    heads."""
    if heads >= attention.kv_heads:
        return [head * attention.kv_heads // heads]
    return [c for c in range(attention.kv_heads) if c * heads // attention.kv_heads == head]


def _query_group(head: int, heads: int, attention: AttentionWeights) -> list[int]:
    per_kv = attention.query_heads // attention.kv_heads
    group = [c * per_kv + i for c in _kv_group(head, heads, attention) for i in range(per_kv)]
    # Several memory heads beside one KV head deal its query heads out among themselves.
    twins = [
        i
        for i in range(heads)
        if _kv_group(i, heads, attention) == _kv_group(head, heads, attention)
    ]
    return group[twins.index(head) % len(group) :: len(twins)]


class LowRank(Narrowing):
    """x -> up (down x), a trained map of rank r."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.size = rank
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank))

    def narrow(self, x: Tensor) -> Tensor:
        return F.linear(x, self.down)

    def widen(self, z: Tensor) -> Tensor:
        return F.linear(z.to(self.up.dtype), self.up)

    @torch.no_grad()
    def start_at(self, matrix: Tensor | None) -> None:
        """The nearest matrix of this rank; for ``None``, zero with a random ``down``."""
        self.down.normal_(std=self.down.shape[1] ** -0.5)
        self.up.zero_()
        if matrix is None:
            return
        u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
        rank = min(len(s), self.down.shape[0])
        root = s[:rank].sqrt()
        self.down[:rank] = root[:, None] * v[:rank]
        self.up[:, :rank] = u[:, :rank] * root


class Projections(nn.Module):
    """q, k, v, gate and output projections of a memory unit, in one of three forms.

    ``full``: trained matrices. ``lowrank``: trained products of rank r. ``shared``: the attention's
    own frozen q, k, v (before RoPE) and output weights, each with a trained difference of rank r
    that starts at zero: a map of x, and with ``write_scope = evicted``, where x is long gone, for k
    and v one of the attention's k and v. ``full`` and ``lowrank`` start from the attention's
    weights unless ``options.start`` is ``random``.

    Args:
        heads, key_dim, value_dim: H, d and dv.
        gate: whether there is a gate projection.

    Raises:
        AllMemError: if the rank is above the size of a projection.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        options: ProjectionOptions,
        gate: bool,
        attention: AttentionWeights,
    ) -> None:
        super().__init__()
        self.kind = options.projections
        self.hidden_size = hidden_size
        self.start = options.start
        keys, values = heads * key_dim, heads * value_dim
        smallest = min(keys, values, hidden_size)
        if self.kind != "full" and options.rank > smallest:
            raise AllMemError(
                f"{type(options).__name__}: rank = {options.rank} is above the size of the "
                f"projections, {smallest}; choose a smaller rank or projections = 'full'"
            )

        def projection(inputs: int, outputs: int) -> nn.Module:
            if self.kind == "full":
                return nn.Linear(inputs, outputs, bias=False)
            return LowRank(inputs, outputs, options.rank)

        self.q = projection(hidden_size, keys)
        self.of_lost = self.kind == "shared" and options.write_scope == "evicted"
        written = attention.kv_heads * attention.head_dim if self.of_lost else hidden_size
        self.k = projection(written, keys)
        self.v = projection(written, values)
        self.o = projection(values, hidden_size)
        self.g = projection(hidden_size, values) if gate else None
        self.lay_q = lay_query_heads(heads, key_dim, attention)
        self.lay_k = lay_kv_heads(heads, key_dim, attention)
        self.lay_v = lay_kv_heads(heads, value_dim, attention)
        # The attention's output columns of the heads on a slot are summed, and a head that is
        # repeated on several slots is shared out: the same value on all of them counts once.
        self.spread = lay_query_heads(heads, value_dim, attention).inverse()

    @torch.no_grad()
    def reset_parameters(self, attention: AttentionWeights) -> None:
        starts: dict[str, Tensor | None] = dict.fromkeys(("q", "k", "v", "o"))
        if self.kind != "shared":
            starts = self._from_attention(attention)
        for name, start in starts.items():
            module = getattr(self, name)
            if isinstance(module, LowRank):
                module.start_at(start)
            elif start is not None:
                module.weight.copy_(start)
        if isinstance(self.g, LowRank):
            self.g.start_at(None)
        elif isinstance(self.g, nn.Linear):
            self.g.weight.zero_()

    def _from_attention(self, attention: AttentionWeights) -> dict[str, Tensor | None]:
        weights = (attention.q, attention.k, attention.v, attention.o)
        if self.start == "random" or any(w is None for w in weights):
            return {
                name: torch.randn(shape) * shape[1] ** -0.5
                for name, shape in self._shapes().items()
            }
        q, k, v, o = (w.float().cpu() for w in weights if w is not None)
        return {
            "q": self.lay_q.matrix().float() @ q,
            "k": self.lay_k.matrix().float() @ k,
            "v": self.lay_v.matrix().float() @ v,
            "o": o @ self.spread.matrix().float(),
        }

    def _shapes(self) -> dict[str, tuple[int, int]]:
        def shape(module: nn.Module) -> tuple[int, int]:
            if isinstance(module, LowRank):
                return module.up.shape[0], module.down.shape[1]
            assert isinstance(module, nn.Linear)
            return module.out_features, module.in_features

        return {name: shape(getattr(self, name)) for name in ("q", "k", "v", "o")}

    def inputs(
        self, x: Tensor, layout: Layout, features: Features | None, written: Written
    ) -> dict[str, Tensor]:
        """{"q" | "k": [R, N, H d], "v": [R, N, H dv]} for x [R, N, D] that is zero in padding
        slots; so are these. k and v are of what is written, and so have to be those of
        ``features``."""
        if self.of_lost:
            assert features is not None, "what the attention loses is in its features"
            projected = {"q": self.q(x), "k": self.k(features.k), "v": self.v(features.v)}
        else:
            projected = {"q": self.q(x), "k": written.mapped(self.k), "v": written.mapped(self.v)}
        if self.kind == "shared":
            assert features is not None, "shared projections need the attention's features"
            projected["q"] = projected["q"] + self.lay_q(features.q)
            projected["k"] = projected["k"] + self.lay_k(features.k)
            projected["v"] = projected["v"] + self.lay_v(features.v)
            if not layout.full:
                # Unlike x, the attention's features are anything in padding slots.
                valid = layout.valid[..., None]
                projected = {name: torch.where(valid, p, 0) for name, p in projected.items()}
        return projected

    def narrowings(self) -> list[Narrowing] | None:
        """The maps of hidden states that are written; ``None`` if they keep all of these."""
        if self.of_lost:
            return []
        maps = [m for m in (self.k, self.v) if isinstance(m, Narrowing)]
        return maps or None

    def gate(self, x: Tensor) -> Tensor:
        """[R, N, H dv], before the activation."""
        assert self.g is not None
        gate: Tensor = self.g(x)
        return gate

    def output(self, read: Tensor, features: Features | None) -> Tensor:
        """[R, N, H dv] to [R, N, D]."""
        y: Tensor = self.o(read)
        if self.kind == "shared":
            assert features is not None, "shared projections need the attention's features"
            y = y + F.linear(self.spread(read), features.output)
        return y

    def flops(self) -> int:
        """Of one token: two for every weight, and where the attention's weights are shared its
        output projection a second time."""
        own = 2 * sum(p.numel() for p in self.parameters())
        return own + (2 * len(self.spread.sources) * self.hidden_size * (self.kind == "shared"))
