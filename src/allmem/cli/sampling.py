"""The options of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allmem.reading import Sampling

__all__ = ["SAMPLING", "SamplingOptions", "sampling_option"]

SAMPLING = "Sampling"
OPTIONS = {
    "temperature": (("--temperature", "-t"), "0 takes the likeliest token."),
    "top_p": (("--top-p",), "Sample among the likeliest of this total."),
    "top_k": (("--top-k",), "Sample among so many; 0 for all."),
    "seed": (("--seed",), "The same seed gives the same text."),
}


def sampling_option(name: str, default: str | bool = True) -> Any:
    """An option of sampling, which has the same name and meaning in every command.

    Args:
        default: what help says of the default, where that is not the value itself.
    """
    flags, meaning = OPTIONS[name]
    return typer.Option(*flags, help=meaning, show_default=default, rich_help_panel=SAMPLING)


@dataclass
class SamplingOptions:
    """How the next token is chosen."""

    temperature: Annotated[float, sampling_option("temperature")] = 0.0
    top_p: Annotated[float, sampling_option("top_p")] = 1.0
    top_k: Annotated[int, sampling_option("top_k")] = 0
    seed: Annotated[int | None, sampling_option("seed")] = None

    def sampling(self) -> Sampling:
        """See ``allmem.reading.Sampling``."""
        from allmem.reading import Sampling

        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)
