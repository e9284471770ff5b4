"""``allmem collect``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import (
    ConversionOptions,
    Model,
    OpeningOptions,
    Thinking,
    Verbose,
    grouped,
    output_option,
)
from allmem.cli.sampling import sampling_option
from allmem.cli.terminal import count, error_console, minutes, progress
from allmem.cli.training import share_cores

if TYPE_CHECKING:
    from allmem.distill.collect import Collected

__all__ = ["command"]

RECOMMENDED = "the model's recommendation"


class EngineName(StrEnum):
    """See ``allmem.serving.responding.ENGINES``."""

    auto = "auto"
    generate = "generate"
    embedded = "embedded"
    vllm = "vllm"


@dataclass
class StudentSampling:
    """How the student's next token is chosen; ``None`` for what its makers recommend."""

    temperature: Annotated[float | None, sampling_option("temperature", f"{RECOMMENDED}, or 1")] = (
        None
    )
    top_p: Annotated[float | None, sampling_option("top_p", f"{RECOMMENDED}, or 1")] = None
    top_k: Annotated[int | None, sampling_option("top_k", f"{RECOMMENDED}, or 0")] = None
    seed: Annotated[int, sampling_option("seed")] = 0


@grouped
def command(
    model: Model,
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Chats whose last user turn is to be answered, or rows with a 'prompt'; every "
            "form that `allmem data build` reads; repeatable.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, output_option("File of responses (.jsonl) to make, or to go on with.", "FILE")
    ],
    opening: OpeningOptions,
    sampling: StudentSampling,
    conversion: ConversionOptions,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Longest response.")
    ] = 1024,
    max_prompt_tokens: Annotated[
        int,
        typer.Option("--max-prompt-tokens", min=1, metavar="N", help="Longer prompts are skipped."),
    ] = 4096,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, metavar="N", help="Answer the first N prompts.", show_default="all"
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Prompts answered together.")
    ] = 8,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine", help="What answers; auto is vLLM where it is installed, else embedded."
        ),
    ] = EngineName.auto,
    thinking: Thinking = False,
    verbose: Verbose = False,
) -> None:
    """Collect a student's own responses, to be distilled from.

    The model answers every prompt; a recipe with `data.responses` then lets the original model
    judge each token of what it said (offline on-policy distillation). Interrupted, the same command
    goes on where it was.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    share_cores()
    with terminal.working(f"loading {model}"):
        from allmem.data.readers import list_files
        from allmem.distill.collect import collect
        from allmem.distill.prompts import read_prompts
        from allmem.reading import recommended_sampling
        from allmem.serving.responding import responding

        for file in prompts:
            # Before minutes of loading rather than after.
            list_files(file)
        opened = opening.open(model, chosen)
        how = recommended_sampling(
            opened.model,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.seed,
            thinking,
        )
        asked = read_prompts(
            prompts, opened.tokenizer, thinking=thinking, longest=max_prompt_tokens, limit=limit
        )
    for reason, number in asked.skipped.items():
        error_console().print(f"skipped: {reason} {count(number)}", markup=False)
    with (
        responding(
            str(engine), opened, asked.end, how, max_new_tokens=max_new_tokens, slots=batch
        ) as (respond, together),
        progress(_describe, lambda now: now.done / now.total) as on_batch,
    ):
        result = collect(
            opened,
            asked,
            output,
            how,
            max_new_tokens=max_new_tokens,
            batch=together,
            engine=respond,
            source=model,
            adapter=opening.adapter,
            on_batch=on_batch,
        )
    terminal.console().print(
        f"{output}: {count(result.done)} responses, {count(result.tokens)} tokens, "
        f"{result.finished / result.done:.0%} ended by themselves",
        markup=False,
        soft_wrap=True,
    )


def _describe(now: Collected) -> str:
    """``12 of 100 responses  320 tokens/s  1:20 left``."""
    return (
        f"{count(now.done)} of {count(now.total)} responses  "
        f"{now.tokens_per_second:,.0f} tokens/s  {minutes(now.seconds_left)} left"
    )
