"""A tiny random teacher, its converted copy, and texts that it can be distilled on.

All slow weights are drawn at random, alpha included, unless a test is about the start.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import allmem
from allmem.data import Sequences
from allmem.data.labels import IGNORED
from allmem.data.stream import collate
from allmem.distill import DistillConfig, TextRows
from allmem.distill.rows import Row, counted, held_out_rows, plain_row
from allmem.models.modeling import AllMemForCausalLM

V, W, S, C, T = 43, 10, 2, 5, 37


def make_base(
    seed: int = 0, dtype: torch.dtype = torch.float64, vocabulary: int = V
) -> LlamaForCausalLM:
    """A plain model of two layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        # Random weights as transformers draws them make every distribution flat.
        for parameter in base.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    return base


def make_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    random: bool = True,
    memory: dict[str, object] | None = None,
    mixers: str = "allmem",
) -> AllMemForCausalLM:
    """A converted model of two layers."""
    base = make_base(seed, dtype)
    chunk = C if "allmem" in mixers else None
    model = allmem.convert(base, window=W, sinks=S, chunk=chunk, memory=memory, mixers=mixers)
    if random:
        randomise(model)
    return model


@torch.no_grad()
def randomise(model: AllMemForCausalLM) -> None:
    """Move every slow weight away from its start."""
    for name, parameter in model.memory_parameters().items():
        scale = 0.3 if name.endswith("alpha") else 0.1
        parameter.add_(scale * torch.randn_like(parameter))


def make_text(tokens: int = 600, seed: int = 1) -> Tensor:
    """[tokens]; runs that come back, so that something older than the window matters."""
    generator = torch.Generator().manual_seed(seed)
    phrases = torch.randint(3, V, (8, 6), generator=generator)
    order = torch.randint(8, (tokens // 6 + 1,), generator=generator)
    return phrases[order].flatten()[:tokens]


def make_rows(length: int = T, seed: int = 0) -> TextRows:
    return TextRows(Sequences([make_text()], length, seed))


def make_held_out(count: int = 10) -> list[Row]:
    return held_out_rows(make_text(10 * T, seed=2), T, count)


def make_batch(ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Plain rows [B, T] as a batch, and which of its positions count."""
    batch = collate([plain_row(row) for row in ids])
    labels = counted(batch["labels"], batch["position_ids"], W)
    return batch, labels[:, 1:] != IGNORED


def make_packed(seed: int = 3) -> dict[str, Tensor]:
    """Two rows of several documents, some tokens of which are learned."""
    lengths = [[17, 1, 30, 13], [25, 36]]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for sizes in lengths:
        ids = make_text(sum(sizes), seed)
        learned = torch.rand(len(ids), generator=generator) < 0.6
        positions = torch.cat([torch.arange(n) for n in sizes])
        labels = torch.where(learned & (positions > 0), ids, IGNORED)
        rows.append({"input_ids": ids, "labels": labels, "position_ids": positions})
    return collate(rows)


def make_config(**changes: object) -> DistillConfig:
    """Twelve steps of two rows, four in each stage."""
    values: dict[str, object] = {
        "steps": 12,
        "batch": 2,
        "stage": "all",
        "solve_share": 1 / 3,
        "match_share": 0.5,
        "lr": 3e-3,
    }
    return DistillConfig(**{**values, **changes})  # type: ignore[arg-type]
