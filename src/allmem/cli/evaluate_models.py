"""The options of ``allmem evaluate`` that say which models are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allmem.cli.options import OpeningOptions
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.choices import Conversion
    from allmem.evaluation.local import LocalModel
    from allmem.evaluation.remote import RemoteModel

__all__ = ["ComparisonOptions", "ServerOptions"]

MODELS = "Models"
SERVER = "Server"
FLAGS = {"settings": "--set", "scalings": "--rope-scaling"}
"""Options that are not called as their fields are."""


@dataclass
class ComparisonOptions:
    """Which models are evaluated side by side."""

    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="Evaluate this model too and show the difference; 'base' is the one that MODEL "
            "was converted from.",
            rich_help_panel=MODELS,
        ),
    ] = None
    scalings: Annotated[
        list[str],
        typer.Option(
            "--rope-scaling",
            metavar="KIND:FACTOR",
            help="Evaluate the teacher once more with its positions scaled to reach FACTOR times "
            "further, without training: linear, ntk or yarn; repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = field(default_factory=list)
    readers: Annotated[
        str,
        typer.Option(
            "--readers",
            metavar="LIST",
            help="Of a converted model: memory, window (the memory left out) and unwritten (the "
            "memory never written).",
            rich_help_panel=MODELS,
        ),
    ] = "memory"
    sizes: Annotated[
        list[str],
        typer.Option(
            "--sizes",
            metavar="W/S/C",
            help="Read with this window, sinks and chunk; repeatable, for a grid.",
            show_default="the model's own",
            rich_help_panel=MODELS,
        ),
    ] = field(default_factory=list)
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="NAME",
            help="Of MODEL in tables.",
            show_default="its name",
            rich_help_panel=MODELS,
        ),
    ] = None

    def models(
        self, source: str | None, conversion: Conversion, opening: OpeningOptions
    ) -> tuple[list[LocalModel], str | None]:
        """The models, loaded, and the label of the teacher among them.

        Raises:
            AllMemError: if one cannot be loaded, or readers or sizes do not fit.
        """
        from allmem.evaluation.opening import (
            local_models,
            name_of,
            open_source,
            scaled_teacher,
            teacher_of,
        )
        from allmem.evaluation.sizes import parse_sizes
        from allmem.models.rope_scaling import RopeScaling

        if source is None:
            raise AllMemError("there is no model; name one, or a server with --url")
        scalings = [RopeScaling.parse(text) for text in dict.fromkeys(self.scalings)]
        if scalings and self.teacher is None:
            raise AllMemError("--rope-scaling is for the teacher; name it with --teacher")
        sizes = [parse_sizes(text) for text in self.sizes]
        arguments = opening.arguments()
        opened = open_source(source, conversion, **arguments)
        readers = [name.strip() for name in self.readers.split(",")]
        models = local_models(opened, self.label or name_of(source), readers, sizes)
        if self.teacher is None:
            return models, None
        loading = {name: arguments[name] for name in ("dtype", "device")}
        teacher = teacher_of(opened, self.teacher, [m.label for m in models], **loading)
        further = [scaled_teacher(teacher, scaling) for scaling in scalings]
        return [*models, teacher, *further], teacher.label


@dataclass
class ServerOptions:
    """A model that is asked over the network."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Ask an OpenAI-compatible server (vllm serve, ...); MODEL is its name there. The "
            "key comes from the environment variable OPENAI_API_KEY.",
            rich_help_panel=SERVER,
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Of the server's model, to cut long prompts and to measure lengths.",
            rich_help_panel=SERVER,
        ),
    ] = None

    def refuse_alone(self) -> None:
        """Refuse what means something with a server only.

        Raises:
            AllMemError: if it is there.
        """
        if self.tokenizer is not None:
            raise AllMemError("--tokenizer is for a server's model; give --url, or leave it out")

    def refuse_beside(self, comparison: ComparisonOptions, *loading: Any) -> None:
        """Refuse what has no meaning for a model that is asked over the network.

        Args:
            loading: all other options of models that are loaded here.

        Raises:
            AllMemError: if any of it was given, naming it.
        """
        given = [
            FLAGS.get(name, f"--{name.replace('_', '-')}")
            for options in (comparison, *loading)
            for name, default in vars(type(options)()).items()
            if name != "label" and getattr(options, name) != default
        ]
        if given:
            raise AllMemError(
                f"{', '.join(given)}: with --url the model is loaded elsewhere; leave it out, or "
                "evaluate a model here"
            )

    def model(self, name: str | None, label: str | None, batch: int, thinking: bool) -> RemoteModel:
        """The model behind the server.

        Raises:
            AllMemError: if it cannot be reached.
        """
        from allmem.evaluation.remote import RemoteModel
        from allmem.models.sources import load_tokenizer
        from allmem.opening import resolve

        assert self.url is not None
        tokenizer = None if self.tokenizer is None else load_tokenizer(resolve(self.tokenizer))
        return RemoteModel(
            self.url,
            name,
            label,
            tokenizer=tokenizer,
            concurrency=batch,
            thinking=thinking,
        )
