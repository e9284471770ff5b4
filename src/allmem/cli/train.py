"""``allmem train``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import (
    ConversionOptions,
    Model,
    OpeningOptions,
    Verbose,
    grouped,
    output_option,
)
from allmem.cli.training import run

__all__ = ["command"]


class StageChoice(StrEnum):
    """See ``allmem.distill.config.Stage``."""

    all = "all"
    both = "both"
    solve = "solve"
    match = "match"
    kl = "kl"


BUDGET = "Budget (one of the two)"
RECIPE = "Recipe"


@grouped
def command(
    model: Model,
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text in UTF-8 to learn from; repeatable.",
            show_default=False,
        ),
    ],
    output: Annotated[str, output_option("Folder for adapter, checkpoint and figures.")],
    conversion: ConversionOptions,
    opening: OpeningOptions,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out",
            metavar="FILE",
            help="Text to be judged by.",
            show_default="the last tenth of the last text",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", rich_help_panel=BUDGET)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", rich_help_panel=BUDGET)
    ] = None,
    length: Annotated[
        int,
        typer.Option("--length", metavar="N", help="Tokens of a sequence.", rich_help_panel=RECIPE),
    ] = 1024,
    batch: Annotated[
        int,
        typer.Option("--batch", metavar="N", help="Sequences per step.", rich_help_panel=RECIPE),
    ] = 1,
    stage: Annotated[
        StageChoice,
        typer.Option(
            "--stage",
            rich_help_panel=RECIPE,
            help="solve: output projections in closed form; match: each layer alone; kl: end to "
            "end; both: match, then kl; all: the three.",
        ),
    ] = StageChoice.all,
    solve_share: Annotated[
        float,
        typer.Option(
            "--solve-share",
            metavar="X",
            help="Share of the budget that 'all' gives to solving.",
            rich_help_panel=RECIPE,
        ),
    ] = 0.3,
    match_share: Annotated[
        float | None,
        typer.Option(
            "--match-share",
            metavar="X",
            help="Share of the rest that matching gets.",
            show_default="0.6 of 'both', nothing of 'all'",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    lr: Annotated[
        float,
        typer.Option("--lr", metavar="X", help="Peak rate when matching.", rich_help_panel=RECIPE),
    ] = 1e-3,
    kl_lr: Annotated[
        float | None,
        typer.Option(
            "--kl-lr",
            metavar="X",
            help="Peak rate end to end.",
            show_default="a fifth of --lr",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    alpha_ratio: Annotated[
        float,
        typer.Option(
            "--alpha-ratio",
            metavar="X",
            help="Peak rate of alpha, as a multiple of the others'.",
            rich_help_panel=RECIPE,
        ),
    ] = 10.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", rich_help_panel=RECIPE)] = 0,
    checkpoint_minutes: Annotated[
        float,
        typer.Option("--checkpoint-minutes", metavar="N", help="Between two checkpoints."),
    ] = 5.0,
    verbose: Verbose = False,
) -> None:
    """Distil the memory from the original model, on plain text.

    The original model, with full attention, is the teacher; only the memories learn, beyond the
    window. The result is an adapter: `allmem ask MODEL --adapter DIR/adapter.safetensors ...`. An
    interrupted run goes on with --resume.
    """
    from allmem.distill.config import DistillConfig
    from allmem.distill.recipe import DataSource, Recipe

    config = DistillConfig(
        tokens=tokens,
        minutes=minutes,
        batch=batch,
        stage=stage.value,
        solve_share=solve_share,
        match_share=match_share,
        lr=lr,
        kl_lr=kl_lr,
        alpha_ratio=alpha_ratio,
        seed=seed,
        checkpoint_minutes=checkpoint_minutes,
    )
    recipe = Recipe(
        model=model,
        output=output,
        data=DataSource(texts=tuple(text), held_out=held_out, length=length),
        training=config,
        conversion=conversion.conversion(),
        **opening.arguments(),
    )
    terminal.quiet(verbose)
    run(recipe, resume)
