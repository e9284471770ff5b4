"""How far the inner loss falls on real text at the starting values, by the inner step.

    python -m benchmarks.inner_step

SmolLM2's hidden states on 4,096 tokens of the shipped novel go through a memory unit as it starts;
no outer training. For each setting and chunk: the inner loss of the first chunk, of the last three,
and the largest after the first chunk, means over layers and heads. A loss above the first one means
that a write did harm.
"""

from __future__ import annotations

import argparse
import lzma
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.naive import naive_read
from allmem.memory.projections import Written
from allmem.memory.unit import MemoryUnit
from allmem.models.sources import load_base, load_tokenizer, smollm2_file
from allmem.models.structure import attention_shape, attention_weights, decoder_layers
from benchmarks.measure import record

NOVEL = "morris_wood_beyond_the_world_1894.txt.xz"
TOKENS = 4096
LAYERS = (1, 6, 10, 15, 20, 26)
SETTINGS: list[dict[str, Any]] = [
    {"step": 0.1, "step_ratio": 0.1},
    {"step": 0.03, "step_ratio": 0.1},
    {"step": 0.01, "step_ratio": 0.1},
    {"step": 0.1, "step_ratio": 0.1, "clip": 0.3},
    {"step": 0.1, "step_ratio": 0.01},
    {"step": 0.1, "step_ratio": 0.003},
    {"step": 0.1, "step_ratio": 0.001},
]


@torch.no_grad()
def hidden_states(model: Any, ids: Tensor) -> dict[int, Tensor]:
    """What enters the attention of each layer in ``LAYERS``, [1, T, D]."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda _, args, kwargs: found.update({layer: kwargs["hidden_states"]})

    layers: Any = decoder_layers(model)
    handles = [
        layers[i].self_attn.register_forward_pre_hook(keep(i), with_kwargs=True) for i in LAYERS
    ]
    model(ids, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def chunk_losses(unit: MemoryUnit, x: Tensor) -> list[float]:
    """Mean inner loss of every chunk, with the weights that it is read with."""
    config, chunk = unit.config, unit.config.chunk
    whole = Layout.dense(0, 1, x.shape[1], x.device)
    (q, k, v, eta, beta), _ = unit.tokens(x, unit.begin(1, x.dtype), whole, None, Written(x))
    state, losses = unit.begin(1, x.dtype).memory, []
    for first in range(0, x.shape[1] - chunk + 1, chunk):
        now = slice(first, first + chunk)
        keys, values = k[0, now].transpose(0, 1), v[0, now].transpose(0, 1)
        found = naive_read(keys, {name: w[0] for name, w in state.weights.items()}, config)
        losses.append(float(0.5 * (found - values).square().sum(-1).mean()))
        layout = Layout.dense(first, 1, chunk, x.device)
        parts = (q[:, now], k[:, now], v[:, now], eta[:, now], beta[:, now])
        _, state = inner_loop(*parts, state, dict(unit.initial), layout, config)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chunks", default="32,128,512,1024")
    options = parser.parse_args()
    model, tokenizer = load_base(smollm2_file()), load_tokenizer(smollm2_file())
    text = lzma.decompress((files("allmem") / "resources" / NOVEL).read_bytes()).decode()
    ids = tokenizer(text[20_000:60_000], return_tensors="pt").input_ids[:, :TOKENS]
    states = hidden_states(model, ids)
    shape = attention_shape(model.config)
    rows = []
    for chunk in map(int, options.chunks.split(",")):
        for setting in SETTINGS:
            config = MemoryConfig.from_dict({"chunk": chunk, **setting})
            config = config.sized(shape.hidden_size, shape.kv_heads)
            curves = []
            for layer, x in states.items():
                torch.manual_seed(layer)
                core = decoder_layers(model)[layer].self_attn
                unit = MemoryUnit(shape.hidden_size, config, attention_weights(core, shape))
                curves.append(chunk_losses(unit, x))
            rows.append(
                {
                    "chunk": chunk,
                    **{name: setting.get(name, 1.0) for name in ("step", "step_ratio", "clip")},
                    "first": sum(c[0] for c in curves) / len(curves),
                    "last three": sum(sum(c[-3:]) / 3 for c in curves) / len(curves),
                    "largest after the first": max(max(c[1:]) for c in curves),
                }
            )
            print(rows[-1], flush=True)
    notes = [
        f"Layers {LAYERS} of SmolLM2-135M-Instruct (4-bit file, dequantised), fp32, h = d = 192."
    ]
    record("inner_step", "The inner loss on real text, by the inner step", rows, notes)


if __name__ == "__main__":
    main()
