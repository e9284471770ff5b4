"""A report as one HTML file that needs nothing else: no script, no file, no address.

Whatever comes from a run is escaped, and a policy in the head forbids the browser to load or run
anything, should a text ever slip through.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value

__all__ = ["to_html"]


def _cell(value: str | Value, name: bool) -> str:
    if isinstance(value, str):
        return f"<{'th scope=row' if name else 'td'}>{escape(value)}</{'th' if name else 'td'}>"
    kind = f' class="{value.mark}"' if value.mark else ""
    title = f' title="{escape(value.title)}"' if value.title else ""
    count = f" <small>{escape(value.count)}</small>" if value.count else ""
    return f"<td{kind}{title}>{escape(value.text)}{count}</td>"


def _table(table: Table) -> str:
    head = "".join(
        f"<th scope=col{' class=name' if i < table.names else ''}>{escape(column)}</th>"
        for i, column in enumerate(table.columns)
    )
    rows = "\n".join(
        "<tr>" + "".join(_cell(value, i < table.names) for i, value in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    kind = " class=texts" if table.texts else ""
    return (
        f"<div class=wide tabindex=0><table{kind}>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p{' class=warning' if block.warning else ''}>{escape(block.text)}</p>"
        case Table():
            return _table(block)
        case Figure():
            data = base64.b64encode(block.png).decode()
            return f'<img alt="{escape(block.alt)}" src="data:image/png;base64,{data}">'


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The whole file."""
    style = (files("allmem.evaluation.report") / "report.css").read_text(encoding="utf-8")
    body = "\n".join(_block(block) for block in blocks)
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
