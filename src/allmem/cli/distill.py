"""``allmem distill``."""

from __future__ import annotations

from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import Verbose
from allmem.cli.training import run

__all__ = ["command"]


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or a preset: smollm2-cpu, smollm2-near, smollm2, qwen3-0.6b, "
            "qwen3-1.7b.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="In place of the recipe's own, such as training.lr=1e-3 or output=runs/b.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output folder.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the recipe with every key, and do nothing.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Distil memories by a recipe: data, losses, stages, devices and all.

    `allmem distill smollm2-cpu output=runs/first` runs a preset; `allmem distill recipe.yaml
    training.steps=200` a recipe of your own with one value changed. Interrupted or killed, the same
    command with --resume gives the result of a run that was not.

    On several GPUs the same command is launched once per process: `torchrun --nproc-per-node 8 -m
    allmem distill recipe.yaml`.
    """
    terminal.quiet(verbose)
    from allmem.distill.recipe import load_recipe, recipe_text

    chosen = load_recipe(recipe, settings or ())
    if show:
        terminal.console().print(recipe_text(chosen), markup=False, highlight=False, soft_wrap=True)
        return
    run(chosen, resume)
