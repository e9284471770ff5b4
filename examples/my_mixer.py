"""A memory of one's own in one file: linear attention with a learned decay, named ``mine``.

    S_t = a_t S_{t-1} + k_t v_t^T        a_t = sigmoid(w x_t + b), one number per head
    y_t = W_o (q_t S_t)

Importing this module registers it; ``allmem.convert(model, mixers="mine")`` then puts one into
every layer. Run as a program, it checks the mixer against the conformance suite:

    python -m examples.my_mixer

Letters: R rows, N slots of a call, D hidden size, H heads, d head size, n tokens of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import Options, require_positive
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features
from allmem.mixers import Capabilities, MemoryKind, Mixer, register_memory
from allmem.state import State


@dataclass(frozen=True)
class MineConfig(Options):
    """What a user may choose; ``mixer_options={"mine": {...}}`` in ``allmem.convert``."""

    block: int = 64
    """Tokens that are computed together. It changes the speed, not the result."""

    def __post_init__(self) -> None:
        require_positive("MineConfig", block=self.block)


@dataclass
class MineState(State):
    """What one sequence leaves behind."""

    matrix: Tensor
    """S: [R, H, d, d], fp32 at least: it is a sum over the whole text."""


class MineMixer(Mixer):
    """Linear attention with decay, started from the projections of the attention beside it."""

    capabilities = Capabilities(constant_state=True, trainable=True)

    def __init__(self, hidden_size: int, config: MineConfig, attention: AttentionWeights) -> None:
        super().__init__()
        self.config = config
        self.heads, self.head_dim = attention.kv_heads, attention.head_dim
        inner = self.heads * self.head_dim
        self.q = nn.Linear(hidden_size, inner, bias=False)
        self.k = nn.Linear(hidden_size, inner, bias=False)
        self.v = nn.Linear(hidden_size, inner, bias=False)
        self.o = nn.Linear(inner, hidden_size, bias=False)
        self.decay = nn.Linear(hidden_size, self.heads)
        self.reset_parameters(attention)

    @torch.no_grad()
    def reset_parameters(self, attention: AttentionWeights) -> None:
        # A head forgets nearly nothing at first: a_t = sigmoid(5) = 0.993.
        self.decay.weight.zero_()
        self.decay.bias.fill_(5.0)
        q, k, v, o = attention.q, attention.k, attention.v, attention.o
        if q is None or k is None or v is None or o is None:
            # A checkpoint is being loaded: its weights come after this.
            return
        group = attention.query_heads // self.heads
        # [K, G, E, D]: the query heads that share a KV head are averaged, their outputs summed.
        self.q.weight.copy_(q.view(self.heads, group, self.head_dim, -1).mean(1).flatten(0, 1))
        self.k.weight.copy_(k)
        self.v.weight.copy_(v)
        self.o.weight.copy_(o.view(-1, self.heads, group, self.head_dim).sum(2).flatten(1))

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> MineState:
        wide = torch.promote_types(dtype, torch.float32)
        shape = (rows, self.heads, self.head_dim, self.head_dim)
        return MineState(torch.zeros(shape, dtype=wide, device=device))

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, MineState]:
        assert isinstance(state, MineState)
        # Padding stands behind a row's tokens and may hold anything: here it writes k = 0 ...
        if not layout.full:
            x = torch.where(layout.valid[..., None], x, 0)
        q, k, v = (self._heads(project(x)) for project in (self.q, self.k, self.v))
        q = q * self.head_dim**-0.5
        log_decay = F.logsigmoid(self.decay(x).to(q.dtype)).mT  # [R, H, N]
        # ... and forgets nothing, a = 1, so it leaves the state as it is.
        if not layout.full:
            log_decay = torch.where(layout.valid[:, None], log_decay, 0)
        matrix, pieces = state.matrix, []
        for first in range(0, x.shape[1], self.config.block):
            now = slice(first, first + self.config.block)
            y, matrix = _block(
                q[:, :, now], k[:, :, now], v[:, :, now], log_decay[..., now], matrix
            )
            pieces.append(y)
        read = torch.cat(pieces, 2).transpose(1, 2).flatten(2).to(x.dtype)  # [R, N, H d]
        return self.o(read), MineState(matrix)

    def periods(self, layout: Layout) -> frozenset[int]:
        # All tokens are treated alike.
        return frozenset()

    def _heads(self, x: Tensor) -> Tensor:
        """[R, N, H d] to [R, H, N, d], in the dtype of the state."""
        x = x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        wide = torch.promote_types(dtype, torch.float32)
        return self.heads * self.head_dim**2 * wide.itemsize

    def flops(self, tokens: int) -> int:
        matrices = (self.q, self.k, self.v, self.o, self.decay)
        projections = sum(2 * m.in_features * m.out_features for m in matrices)
        blocks, rest = divmod(tokens, self.config.block)
        inside = blocks * self.config.block**2 + rest**2  # (query, key) pairs
        per_head = 4 * self.head_dim * inside + 4 * self.head_dim**2 * tokens
        return tokens * projections + self.heads * per_head


def _block(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor]:
    """n steps of the recurrence at once: q, k, v [R, H, n, d], log_decay [R, H, n], S [R, H, d, d].

    With A_t the decays up to t added up, token t sees the key at j <= t with the weight
    exp(A_t - A_j), and what came before the block with exp(A_t).
    """
    total = log_decay.cumsum(-1)  # A
    gap = total[..., :, None] - total[..., None, :]  # [R, H, n, n], at most 0 where j <= t
    past = torch.ones_like(gap, dtype=torch.bool).tril()
    seen = torch.where(past, gap, -torch.inf).exp()
    y = ((q @ k.mT) * seen) @ v + (q * total.exp()[..., None]) @ matrix
    left = (total[..., -1:] - total).exp()[..., None]
    matrix = total[..., -1:, None].exp() * matrix + (k * left).mT @ v
    return y, matrix


register_memory(MemoryKind("mine", MineConfig, MineMixer))


def main() -> None:
    from allmem.mixers.conformance import check_conformance

    attention = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
    failures = check_conformance(lambda: MineMixer(24, MineConfig(block=5), attention), 24)
    for failure in failures:
        print(f"{failure.property}: {failure.message}")
    print("the mixer conforms" if not failures else f"{len(failures)} properties do not hold")


if __name__ == "__main__":
    main()
