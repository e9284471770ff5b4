"""Trains the two-layer teacher of the associative-recall tests.

    python scripts/train_recall_teacher.py tests/fixtures/recall_teacher

A Llama with full attention learns ``allmem.data.recall.RecallTask`` to 99 % and more; its weights
(bf16) and configuration are what the tests load. Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask

SEED = 0
WARMUP = 100
"""Steps of every lesson in which the rate rises."""
CHECK = 100
"""Steps between two looks at the accuracy."""
PASSED = 0.95
"""Accuracy that ends a lesson before the last."""
MARGIN = 0.003
"""What the last lesson must reach above the goal, since rounding to bf16 may cost a little."""


def accuracy(model: LlamaForCausalLM, task: RecallTask, seed: int, batch: int = 512) -> float:
    """Share of answers that the model gives, on fresh sequences."""
    ids, answers = task.sample(batch, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        predicted = model(ids).logits.argmax(-1)
    asked = answers != IGNORED
    return float((predicted == answers)[asked].float().mean())


def circuit_loss(
    attentions: tuple[torch.Tensor, ...], ids: torch.Tensor, asked: torch.Tensor
) -> torch.Tensor:
    """How far the first head of each layer is from the circuit that solves the task.

    In the first layer it looks at the token before, in the second from a key to the values that
    followed it. Left to itself a small model finds this only after a long plateau.
    """
    first, second = (layer[:, 0] for layer in attentions)  # [B, T, T]
    to_previous = first.diagonal(-1, 1, 2)
    follows = torch.zeros_like(second, dtype=torch.bool)
    follows[:, :, 1:] = (ids[:, :, None] == ids[:, None, :-1]).tril(-1)
    to_value = (second * follows).sum(2)[asked]
    return -(to_previous + 1e-6).log().mean() - (to_value + 1e-6).log().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3000, help="of a lesson, at most")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--goal", type=float, default=0.995)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    task = RecallTask()
    config = LlamaConfig(
        vocab_size=task.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=task.length,
        tie_word_embeddings=False,
        initializer_range=0.09,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(SEED + 1)
    begin = time.time()
    # From few keys in short sequences, where two layers find the circuit soon, to the whole task.
    lessons = [RecallTask(24, 4), RecallTask(48, 8), RecallTask(96, 16), task]
    steps = []
    for lesson in lessons:
        passed = options.goal + MARGIN if lesson is task else PASSED
        for step in range(1, options.steps + 1):
            ids, answers = lesson.sample(options.batch, generator)
            output = model(ids, output_attentions=True)
            answer_loss = F.cross_entropy(
                output.logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED
            )
            loss = answer_loss + circuit_loss(output.attentions, ids, answers != IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            fade = 1 - step / options.steps if lesson is task else 1.0
            for group in optimizer.param_groups:
                group["lr"] = options.rate * min(1.0, step / WARMUP) * fade
            optimizer.step()
            optimizer.zero_grad()
            if step % CHECK == 0:
                found = accuracy(model, lesson, seed=step)
                seconds = time.time() - begin
                print(
                    lesson,
                    step,
                    f"{answer_loss.item():.3f} {found:.4f} {seconds:.0f} s",
                    flush=True,
                )
                if found > passed:
                    break
        steps.append(step)
    reached = accuracy(model.to(torch.bfloat16), task, seed=10**6, batch=4096)
    if reached < options.goal:
        raise SystemExit(
            f"the teacher reached {reached:.4f}, not {options.goal}; give it more steps"
        )
    model.save_pretrained(options.output)
    # Says nothing that the model's configuration does not.
    (options.output / "generation_config.json").unlink()
    note = {
        "accuracy": round(reached, 4),
        "steps": steps,
        "batch": options.batch,
        "rate": options.rate,
        "seed": SEED,
    }
    (options.output / "training.json").write_text(json.dumps(note) + "\n")
    print("accuracy", reached)


if __name__ == "__main__":
    main()
