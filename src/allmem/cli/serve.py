"""``allmem serve``."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from allmem.cli import terminal
from allmem.cli.options import (
    ConversionOptions,
    Model,
    OpeningOptions,
    Thinking,
    Verbose,
    grouped,
)

__all__ = ["command"]

ENGINE, LIMITS = "Engine", "Limits"


class EngineName(StrEnum):
    """See ``allmem.serving.opening.ENGINES``."""

    auto = "auto"
    embedded = "embedded"
    vllm = "vllm"


def _number(flag: str, panel: str, what: str, **more: Any) -> Any:
    return typer.Option(flag, metavar="N", help=what, rich_help_panel=panel, **more)


@grouped
def command(
    model: Model,
    opening: OpeningOptions,
    conversion: ConversionOptions,
    host: Annotated[
        str, typer.Option("--host", metavar="NAME", help="Address to listen at.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="ALLMEM_API_KEY",
            show_envvar=False,
            help="That clients must send; or in the environment variable ALLMEM_API_KEY.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="As clients call the model.",
            show_default="MODEL; of a folder or file its own name",
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option("--engine", help="What runs the model.", rich_help_panel=ENGINE),
    ] = EngineName.auto,
    slots: Annotated[
        int | None, _number("--slots", ENGINE, "Sequences that are under way at once.", min=1)
    ] = None,
    step_tokens: Annotated[
        int | None, _number("--step-tokens", ENGINE, "Tokens that are read in one step.", min=1)
    ] = None,
    max_waiting: Annotated[
        int | None, _number("--max-waiting", ENGINE, "Requests that may wait for a slot.", min=0)
    ] = None,
    keep: Annotated[
        int | None,
        _number(
            "--keep",
            ENGINE,
            "Texts that have ended whose states are kept, for a chat's next turn.",
            min=0,
        ),
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, _number("--max-prompt-tokens", LIMITS, "Longest prompt.", min=1)
    ] = None,
    max_tokens: Annotated[int, _number("--max-tokens", LIMITS, "Longest answer.", min=1)] = 8192,
    timeout: Annotated[
        float, _number("--timeout", LIMITS, "Seconds that an answer may take, waiting included.")
    ] = 600.0,
    max_body_mb: Annotated[
        float, _number("--max-body-mb", LIMITS, "Largest request, in megabytes.")
    ] = 16.0,
    grace: Annotated[
        float,
        _number("--grace", LIMITS, "Seconds that answers have to finish on SIGTERM.", min=0),
    ] = 10.0,
    thinking: Thinking = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model by OpenAI's protocol, over HTTP.

    Clients find it at http://HOST:PORT/v1, Prometheus at /metrics. Sampling options that a
    client leaves out are those that the model's makers recommend. Ctrl-C or SIGTERM ends it in
    good order.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    from allmem.serving.server.limits import Limits

    limits = Limits(
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        timeout=timeout,
        max_body_bytes=round(max_body_mb * 1e6),
    )
    from allmem.serving.server.sockets import address, bind, is_local

    sock = bind(host, port)
    if not api_key and not is_local(sock):
        warnings.warn("anybody who can reach this machine can ask; set --api-key", stacklevel=2)
    with terminal.working(f"loading {model}"):
        from allmem.serving.opening import EngineSettings, open_served
        from allmem.serving.server.app import create_app
        from allmem.serving.server.running import run
        from allmem.serving.server.service import Service

        settings = EngineSettings(slots, step_tokens, max_waiting, keep)
        served = open_served(str(engine), settings, lambda: opening.open(model, chosen))
    shown = name or (Path(model).expanduser().resolve().name if Path(model).exists() else model)
    service = Service(served, shown, limits, thinking=thinking)
    run(
        service,
        create_app(service, api_key=api_key or None),
        sock,
        grace=grace,
        ready=lambda: terminal.console().print(f"{shown} is served at {address(sock)}/v1"),
        verbose=verbose,
    )
