"""Dataclasses from what a user wrote: dictionaries, YAML files, ``key=value`` on a command line.

A key that is not known, a value of another type and a key that is missing are errors that say where
and what instead. Plain Python on purpose: nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from allmem.errors import AllMemError, unknown_name

__all__ = ["build_from", "check_positive", "misfit", "override", "read_yaml"]

Config = TypeVar("Config")


def build_from(cls: type[Config], values: Any, where: str) -> Config:
    """A dataclass from a dictionary; fields that are dataclasses from the dictionaries in it.

    Args:
        where: what the dictionary is, for messages ("source 2").

    Raises:
        AllMemError: on anything that does not fit, naming the key.
    """
    if not isinstance(values, dict):
        raise AllMemError(f"{where}: expected keys and values, found {values!r}")
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in names:
            raise AllMemError(f"{where}: {unknown_name('key', str(key), names)}")
        if wrong := misfit(key, value, hints[key]):
            raise AllMemError(f"{where}: {wrong}")
    needed = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if needed:
        raise AllMemError(f"{where}: {', '.join(needed)} must be given")
    built = {key: _built(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**built)
    except AllMemError as error:
        raise AllMemError(f"{where}: {error}") from None


def misfit(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with a key's value, in words; ``None`` if it is of the type ``hint``.

    Of a list, and of keys and values, the first that does not fit is named. Types that no file can
    hold are not checked.
    """
    if _fits(value, hint):
        return None
    for part, inner, kind in _inside(name, value, hint):
        if wrong := misfit(part, inner, kind):
            return wrong
    choices = [c for kind in _kinds(hint) if get_origin(kind) is Literal for c in get_args(kind)]
    near = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0.5)
    hinted = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name} = {value!r} must be {_spoken(hint)}{hinted}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        AllMemError: if the file is missing, cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AllMemError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AllMemError(f"cannot read {path}: {error}") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise AllMemError(f"{path}: expected keys and values, found {values!r}")
    return values


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``key=value`` settings in place of its own; ``a.b=value`` reaches inside.

    Values are read as YAML reads them.

    Raises:
        AllMemError: on a setting of another form, or one that reaches into a plain value.
    """
    changed = dict(values)
    for setting in settings:
        name, found, text = setting.partition("=")
        if not found or not all(name.split(".")):
            raise AllMemError(f"{setting!r}: expected key=value, such as training.lr=1e-3")
        *path, last = name.split(".")
        inner = changed
        for part in path:
            below = inner.get(part)
            if below is not None and not isinstance(below, dict):
                raise AllMemError(f"{setting!r}: {part} is {below!r}, with nothing inside")
            inner[part] = dict(below or {})
            inner = inner[part]
        inner[last] = _parse(text, repr(setting))
    return changed


def check_positive(**values: float | None) -> None:
    """Raise an AllMemError for the first value that is given and not above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise AllMemError(f"{name} = {value!r} must be positive")


def _parse(text: str, where: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's numbers: ``1e-3`` is one."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise AllMemError(f"{where} is not YAML: {reason}") from error


def _built(value: Any, hint: Any, where: str) -> Any:
    nested = next((kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)), None)
    if nested is not None and isinstance(value, dict):
        assert isinstance(nested, type)
        return build_from(nested, value, where)
    if get_origin(hint) is dict and _holds_dataclass(get_args(hint)[1]):
        return {k: _built(v, get_args(hint)[1], f"{where}: {k}") for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _holds_dataclass(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(dataclasses.is_dataclass, get_args(hint)))


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        inside = isinstance(value, list | tuple)
        return inside and all(_fits(v, kind) for _, v, kind in _inside("", value, hint))
    if origin is dict:
        inside = isinstance(value, dict)
        return inside and all(_fits(v, kind) for _, v, kind in _inside("", value, hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict | hint)
    return hint not in (str, bool, types.NoneType) or isinstance(value, hint)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of which a value needs only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _inside(name: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
    """What a list, or keys and values, hold: what each is called, the value, and its type."""
    for kind in _kinds(hint):
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            items, *rest = get_args(kind)
            for item in value if rest == [...] else ():
                yield f"{name} entry", item, items
        if get_origin(kind) is dict and isinstance(value, dict):
            for key, item in value.items():
                yield f"{name}: {key}", item, get_args(kind)[1]


def _spoken(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_spoken(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "keys and values"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "empty")
