"""The options of ``allmem evaluate`` that say what is asked, and how."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allmem.cli.sampling import SAMPLING, sampling_option
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.evaluation.model import EvaluatedModel
    from allmem.evaluation.task import Setting
    from allmem.reading import Sampling

__all__ = ["ExampleOptions", "Protocol", "TestSampling"]

EXAMPLES = "Examples"
RECOMMENDED = "; with --protocol paper the model's recommendation"


class Protocol(StrEnum):
    """By whose rules tasks are asked."""

    official = "official"
    paper = "paper"


@dataclass
class TestSampling:
    """How the next token is chosen; ``None`` for what the protocol says."""

    temperature: Annotated[float | None, sampling_option("temperature", f"0{RECOMMENDED}")] = None
    top_p: Annotated[float | None, sampling_option("top_p", f"1{RECOMMENDED}")] = None
    top_k: Annotated[int | None, sampling_option("top_k", f"0{RECOMMENDED}")] = None
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="Of tasks that are made up, and of samples.", rich_help_panel=SAMPLING
        ),
    ] = 0

    @property
    def greedy(self) -> bool:
        """Whether the user asked for the likeliest token, and did not just leave it at that."""
        return self.temperature == 0

    def sampling(
        self, protocol: Protocol, model: EvaluatedModel, thinking: bool = False
    ) -> Sampling:
        """For all models of a run: as the first one's makers recommend, under the paper's
        protocol.

        Raises:
            AllMemError: if they cannot be asked, or on a value outside its range.
        """
        from allmem.evaluation.local import LocalModel
        from allmem.reading import Sampling, recommendations, recommended_sampling

        if protocol is Protocol.paper and isinstance(model, LocalModel):
            own = model.opened.model
            how = recommended_sampling(
                own, self.temperature, self.top_p, self.top_k, self.seed, thinking
            )
            if self.temperature is None and "temperature" not in recommendations(own, thinking):
                warnings.warn(
                    f"the makers of {model.label} recommend no way to sample, so all models sample "
                    f"with temperature = {how.temperature}, top_p = {how.top_p} and top_k = "
                    f"{how.top_k}; choose with --temperature, --top-p and --top-k",
                    stacklevel=2,
                )
            return how
        if protocol is Protocol.paper and self.temperature is None:
            raise AllMemError(
                "--protocol paper samples as the model's makers recommend, which a server does not "
                "tell; give --temperature, --top-p and --top-k"
            )
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in chosen.items() if value is not None}
        return Sampling(**given, seed=self.seed)  # type: ignore[arg-type]


@dataclass
class ExampleOptions:
    """Which examples, and how they are asked."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            metavar="N",
            help="First N examples of every task, or of every cell of its table.",
            show_default="all",
            rich_help_panel=EXAMPLES,
        ),
    ] = None
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="LIST",
            help="In tokens, for tasks that are made at a length: '4k,8k'.",
            show_default="the task's own",
            rich_help_panel=EXAMPLES,
        ),
    ] = None
    truncate: Annotated[
        int | None,
        typer.Option(
            "--truncate",
            min=2,
            metavar="N",
            help="Cut longer prompts: in the middle, those of short tasks at the start.",
            show_default="the benchmark's rule",
            rich_help_panel=EXAMPLES,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=1,
            metavar="N",
            help="Longest answer.",
            show_default="the benchmark's rule",
            rich_help_panel=EXAMPLES,
        ),
    ] = None
    beyond: Annotated[
        int | None,
        typer.Option(
            "--beyond",
            min=0,
            metavar="N",
            help="Tokens that the facts of probes are older than; give the same in runs that you "
            "compare.",
            show_default="the largest window and sinks",
            rich_help_panel=EXAMPLES,
        ),
    ] = None
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="The smallest form of a task that says something.",
            rich_help_panel=EXAMPLES,
        ),
    ] = False
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows",
            help="Go on without lines of data that cannot be read, and count them.",
            rich_help_panel=EXAMPLES,
        ),
    ] = False
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Run programs that the model wrote, in a subprocess with limits; also those that "
            "an earlier command stored.",
            rich_help_panel=EXAMPLES,
        ),
    ] = False

    def setting(self, **chosen: Any) -> Setting:
        """With what the command chose besides.

        Raises:
            AllMemError: on lengths that are none.
        """
        from allmem.cost.lengths import parse_lengths
        from allmem.evaluation.task import Setting

        return Setting(
            lengths=tuple(parse_lengths(self.lengths)) if self.lengths else (),
            limit=self.limit,
            truncate=self.truncate,
            max_new_tokens=self.max_new_tokens,
            skip_bad_rows=self.skip_bad_rows,
            quick=self.quick,
            beyond=self.beyond,
            run_code=self.run_code,
            **chosen,
        )
