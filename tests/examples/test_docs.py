"""The documentation is true: its Python runs, what it quotes exists, and its links lead somewhere.

The blocks of a page run in order in one namespace, with a tiny random model in the place of the
one that a reader would load.
"""

from __future__ import annotations

import importlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import allmem
from tests.cli.conftest import draw_memory, make_base, make_tokenizer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
FUNCTION = re.compile(r"`(?P<file>src/[\w/]+\.py)::(?P<name>[\w.]+)`")
PAGES = sorted(page.name for page in DOCS.glob("*.md"))


def _page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def _given(page: str) -> dict[str, Any]:
    """What a page says is there."""
    tokenizer = make_tokenizer()
    base = make_base(len(tokenizer))
    if page != "states.md":
        return {"base": base}
    model = allmem.convert(base, window=16, sinks=2, chunk=8)
    draw_memory(model)
    return {"model": model, "tokenizer": tokenizer}


@pytest.mark.parametrize("page", ["arena.md", "layer.md", "mixers.md", "states.md"])
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page, **_given(page)}
    text = _page(page)
    blocks = [block for block in BLOCK.finditer(text) if block["file"] is None]
    assert blocks
    for block in blocks:
        line = text[: block.start("code")].count("\n")
        # Blank lines before it, so that a traceback names the page's own line.
        exec(compile("\n" * line + block["code"], str(DOCS / page), "exec"), names)


@pytest.mark.parametrize("page", ["mixers.md", "serving.md"])
def test_excerpts_are_what_the_file_says(page: str) -> None:
    excerpts = [block for block in BLOCK.finditer(_page(page)) if block["file"]]
    assert excerpts
    for excerpt in excerpts:
        assert excerpt["code"] in (ROOT / excerpt["file"]).read_text(encoding="utf-8")


def test_every_function_that_an_equation_names_exists() -> None:
    found = FUNCTION.findall(_page("layer.md"))
    assert len(found) > 20
    for file, name in found:
        assert (ROOT / file).is_file(), file
        module = file.removeprefix("src/").removesuffix(".py").replace("/", ".")
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            assert hasattr(thing, part), f"{file}::{name}"
            thing = getattr(thing, part)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.finditer(_page(page)):
        target = DOCS / link["path"] if link["path"] else DOCS / page
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in _anchors(target.read_text(encoding="utf-8")), link[0]


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_figure_is_an_svg() -> None:
    root = ET.parse(DOCS / "figures" / "layer.svg").getroot()
    assert root.tag.endswith("svg")
