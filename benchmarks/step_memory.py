"""What one training step needs at most, measured beside the closed form.

    python -m benchmarks.step_memory                      # the cases below, then the whole models
    python -m benchmarks.step_memory --layers 28 --length 24576 --segment 4096 --checkpoint-layers

A step is a forward and a backward pass of ``Distillation`` and a step of AdamW, with random weights
in the shape of Qwen3-0.6B, each in a process of its own. On a GPU the peak is what torch allocated;
on a CPU (Linux) what the system counted as resident, above what was resident before the step.
AdamW's moments are there from the beginning, as in every step but the first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import allmem
from allmem.cost.training import TrainingMemory, training_memory
from allmem.data.stream import IGNORED, collate
from allmem.distill import Distillation, DistillConfig
from allmem.distill.optimizer import make_optimizer
from allmem.distill.precision import training_weights
from allmem.distill.rows import own_sizes, plain_row
from allmem.models.configuration import AllMemConfig
from allmem.models.modeling import AllMemForCausalLM
from benchmarks.measure import record

GB = 1e9
WARM_UP = 256
"""Half of the tokens of a step before the measured one, for what a process sets up once."""
ENVIRONMENT = {
    # One heap for all threads, and larger blocks go back to the system when they are freed, so that
    # what is resident follows what is allocated.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@dataclass(frozen=True)
class Case:
    """A step."""

    layers: int = 28
    length: int = 24576
    segment: int | None = None
    checkpoint_layers: bool = False
    scale: float = 1.0
    """Of the width of Qwen3-0.6B: fewer heads, and a hidden size and an MLP in proportion."""
    vocabulary: int = 151936
    counted: int = 512
    """Positions at the end of the row that the loss counts: they cost time, and no memory beyond
    their hidden states."""
    window: int = 4096
    sinks: int = 128
    chunk: int = 2048

    def base(self) -> Qwen3Config:
        heads = max(round(8 * self.scale), 1)
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=128 * heads,
            intermediate_size=384 * heads,
            num_hidden_layers=self.layers,
            num_attention_heads=2 * heads,
            num_key_value_heads=heads,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        )

    def predicted(self) -> TrainingMemory:
        config = AllMemConfig(
            text_config=self.base(),
            window=self.window,
            sinks=self.sinks,
            mixer_options={"allmem": {"chunk": self.chunk}},
        )
        return training_memory(
            config,
            self.length,
            segment=self.segment,
            checkpoint_layers=self.checkpoint_layers,
            counted=self.counted,
        )


CASES = [
    Case(2, 4096),
    Case(2, 4096, checkpoint_layers=True),
    Case(2, 8192, 2048),
    Case(4, 8192, 2048),
    Case(4, 8192, 2048, checkpoint_layers=True),
    *(Case(4, n, 2048, scale=0.25, vocabulary=32000) for n in (8192, 16384, 24576)),
    *(
        Case(4, 24576, segment, layers, scale=0.25, vocabulary=32000)
        for segment, layers in ((2048, True), (4096, False), (4096, True))
    ),
]


def step(case: Case, device: str) -> dict[str, Any]:
    """Run a step; bytes before it and at its peak, seconds, and the loss."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        base = Qwen3ForCausalLM(case.base())
        torch.set_default_dtype(torch.float32)
        model = allmem.convert(base, window=case.window, sinks=case.sinks, chunk=case.chunk)
    ids = torch.randint(case.vocabulary, (case.length,), device=device)
    batch = collate([plain_row(ids)])
    batch["labels"][:, : case.length - case.counted] = IGNORED
    batch = {key: value.to(device) for key, value in batch.items()}
    config = DistillConfig(
        steps=1,
        stage="kl",
        positions="all",
        segment=case.segment,
        checkpoint_layers=case.checkpoint_layers,
    )
    with training_weights(model):
        if case.checkpoint_layers:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        distillation = Distillation(model, config).train()
        optimizer = make_optimizer(model.memory_parameters(), 1e-3, 1e-3, 0.01)
        for parameter in model.memory_parameters().values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in model.memory_parameters().items():
                # At its start of zero, alpha lets no gradient through.
                if name.endswith("alpha"):
                    parameter.fill_(0.1)
        warm_up = {key: value[:, : 2 * WARM_UP] for key, value in batch.items()}
        warm_up["labels"] = warm_up["input_ids"]
        one_step(distillation, optimizer, warm_up, model)
        gc.collect()
        before = _reset(device)
        begun = time.perf_counter()
        loss = one_step(distillation, optimizer, batch, model)
        return {
            "before": before,
            "peak": _peak(device),
            "seconds": time.perf_counter() - begun,
            "loss": loss / case.counted,
        }


def one_step(
    distillation: Distillation,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    model: AllMemForCausalLM,
) -> float:
    total, _ = distillation(**batch, sizes=own_sizes(model))
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(total.detach())


def _reset(device: str) -> int:
    """Forget the peak so far; what is in use now."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Linux: 5 resets the peak of the resident set.
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(f"{name}:")).split()[1]) * 1024


def measured(case: Case, device: str) -> dict[str, Any]:
    """``step`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step_memory", "--device", device]
    out = subprocess.run(
        [*command, "--one", json.dumps(asdict(case))],
        env=os.environ | ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted, in GB above what is there before the step."""
    parts = case.predicted()
    above = (found["peak"] - found["before"]) / GB
    expected = (parts.total - parts.held + parts.gradients) / GB
    return {
        "hidden": case.base().hidden_size,
        "layers": case.layers,
        "tokens": case.length,
        "segment": case.segment or "-",
        "checkpoint_layers": case.checkpoint_layers,
        "measured (GB)": above,
        "formula (GB)": expected,
        "formula / measured": expected / above,
        "before (GB)": found["before"] / GB,
        "seconds": found["seconds"],
        "loss": found["loss"],
        **{f"{k} (GB)": v / GB for k, v in asdict(parts).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(Case(**json.loads(options.one)), options.device)))
        return
    for case in CASES:
        print(json.dumps(row(case, measured(case, options.device))), flush=True)
if __name__ == "__main__":
    main()
