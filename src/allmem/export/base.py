"""What the files of a base model say of it: licence, type of weights, sizes."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import yaml

from allmem.choices import Conversion
from allmem.cost import Overview
from allmem.errors import AllMemError
from allmem.export.card import Base
from allmem.export.names import hub_file, on_hub, published
from allmem.export.run import Trained
from allmem.models.adapter import adapter_header
from allmem.models.sources import gguf_file
from allmem.opening import PACKAGED, OpenedModel, outline, resolve

__all__ = ["CARD", "describe_base", "gguf_type"]

CARD = "README.md"


def describe_base(named: str | None, trained: Trained, opened: OpenedModel | None) -> Base:
    """What can be told of the base, with a warning if that is little.

    Args:
        named: a source as ``resolve`` takes it.
        opened: the base with the memories, if it was loaded; else its configuration is read.
    """
    if named is None:
        return Base()
    overview = None
    try:
        if opened is not None:
            embeddings: Any = opened.model.get_input_embeddings()
            overview = Overview(opened.model, embeddings.weight.dtype)
        else:
            overview = _outlined(named, trained)
    except AllMemError as error:
        warnings.warn(
            f"the base {named} cannot be read here, so the card leaves out what its files would "
            f"tell ({error}); name it by --base",
            stacklevel=3,
        )
    same = opened is None or adapter_header(opened.model)["base"] == trained.header["base"]
    name = published(named)
    gguf = _gguf(named)
    local = Path(named).expanduser()
    if gguf is not None:
        licence, kind = _read_gguf(gguf)
        return Base(
            name,
            everywhere=named == PACKAGED and not local.exists(),
            file=None if gguf.name == name else gguf.name,
            licence=licence,
            gguf=kind,
            overview=overview,
            same=same,
        )
    if local.exists():
        return Base(name, licence=_licence_of(local / CARD), overview=overview, same=same)
    licence = _licence_of(hub_file(named, CARD, download=overview is not None))
    known = on_hub(named)
    return Base(name, known, known, licence=licence, overview=overview, same=same)


def _outlined(named: str, trained: Trained) -> Overview:
    header = trained.header
    options = dict(header["mixer_options"])
    layout = Conversion(
        window=header["window"],
        sinks=header["sinks"],
        mixers=",".join("window" if name == "local" else name for name in header["layers"]),
        memory=options.pop("allmem", {}),
        mixer_options=options,
    )
    with warnings.catch_warnings():
        # Of sizes beyond what the base was trained for: told when it was converted.
        warnings.simplefilter("ignore")
        found = outline(named, layout, None if trained.recipe is None else trained.recipe.dtype)
    if found.model.config.layers != header["layers"]:
        raise AllMemError(
            f"its layers would be {found.model.config.layers}, the adapter's are {header['layers']}"
        )
    return Overview(found.model, found.dtype)


def _licence_of(card: Path | None) -> dict[str, str]:
    """The licence in a model card's front matter."""
    from huggingface_hub import metadata_load

    if card is None or not card.is_file():
        return {}
    try:
        values = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return _licence(values.get("license"), values.get("license_name"), values.get("license_link"))


def _licence(kind: Any, name: Any, link: Any) -> dict[str, str]:
    if not isinstance(kind, str):
        return {}
    found = {"license": kind, "license_name": name, "license_link": link}
    if not str(link).startswith("https://"):
        # A file beside the base's card, which is not here.
        del found["license_link"]
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _gguf(source: str) -> Path | None:
    """The GGUF file that a source stands for, if it does and it is there."""
    try:
        return gguf_file(resolve(source))
    except AllMemError:
        return None


def gguf_type(source: str | None) -> str | None:
    """See ``Card.gguf``."""
    if source is None:
        return None
    file = _gguf(source)
    if file is not None:
        return _read_gguf(file)[1]
    gone = not Path(source).exists() and (source == PACKAGED or source.endswith(".gguf"))
    return "" if gone else None


@functools.cache
def _read_gguf(file: Path) -> tuple[dict[str, str], str]:
    """Licence, and the type of the weights; nothing if it cannot be read."""
    try:
        from gguf import GGUFReader, LlamaFileType

        reader = GGUFReader(str(file))
    except (ImportError, OSError, ValueError, IndexError, KeyError):
        return {}, ""

    def value(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    licence = (value(f"general.license{end}") for end in ("", ".name", ".link"))
    kind = value("general.file_type")
    names = {member.value: member.name for member in LlamaFileType}
    return _licence(*licence), names.get(kind, "")
