"""Writes ``docs/cli.md`` from the commands' own help: ``python -m scripts.write_cli_docs``.

The options are read from the commands' signatures, so that the page does not depend on how a
version of typer lays help out. A test compares the page with ``render()``.
"""

from __future__ import annotations

import inspect
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from allmem.cli.main import COMMANDS, Listed, is_available, paragraphs

__all__ = ["PAGE", "render"]

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# Command line

This page is written by `python -m scripts.write_cli_docs` from the help texts.

Results go to stdout; progress, warnings and errors to stderr. Exit codes: 0, 1 for a defect of \
allmem, 2 for bad input or wrong usage (one line says what to do), 130 after Ctrl-C, 141 when the \
reader of a pipe went away.
"""


def render() -> str:
    """The page."""
    return "\n".join([HEAD, *(_command(listed) for listed in COMMANDS if is_available(listed))])


def _command(listed: Listed) -> str:
    command = import_module(listed.module).command
    hints = get_type_hints(command, include_extras=True)
    arguments: list[tuple[str, str]] = []
    options: dict[str, list[tuple[str, str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        annotation = hints[name]
        assert get_origin(annotation) is Annotated
        kind, info = get_args(annotation)[:2]
        if isinstance(info, ArgumentInfo):
            arguments.append((info.metavar or name.upper(), info.help or ""))
        else:
            rows = options.setdefault(info.rich_help_panel or "Options", [])
            rows.append(_option(info, kind, parameter.default))
    usage = " ".join(["allmem", listed.name, "[OPTIONS]", *(name for name, _ in arguments)])
    parts = [f"## allmem {listed.name}\n", f"```\n{usage}\n```\n", paragraphs(command.__doc__), ""]
    for title, rows in {"Arguments": arguments, **options}.items():
        if rows:
            parts += [f"| {title} | |", "|---|---|"]
            parts += [f"| `{name}` | {text} |".replace("||", "| |") for name, text in rows]
            parts.append("")
    return "\n".join(parts)


def _option(info: OptionInfo, kind: Any, default: Any) -> tuple[str, str]:
    # In an annotation typer keeps the first name of an option as its default.
    names = [info.default] if isinstance(info.default, str) else []
    names += info.param_decls or []
    shown = _shown(info, default)
    text = info.help or ""
    text += "" if shown is None else f" Default: {shown}."
    if default is inspect.Parameter.empty:
        text += " Required."
    return " ".join([", ".join(names), *_value(info, kind)]), text.strip()


def _shown(info: OptionInfo, default: Any) -> str | None:
    if isinstance(info.show_default, str):
        return info.show_default
    if default is None or default is inspect.Parameter.empty or isinstance(default, bool | list):
        return None
    return str(default.value if isinstance(default, Enum) else default)


def _value(info: OptionInfo, kind: Any) -> list[str]:
    """How an option's value is written."""
    if info.metavar:
        return [info.metavar]
    if isinstance(kind, UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if kind is bool:
        return []
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ["/".join(str(member.value) for member in kind)]
    return ["N" if kind is int else "X" if kind is float else "TEXT"]


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
