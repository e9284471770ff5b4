"""Packages whose names are imported when they are used: so that reading a recipe, or refusing it,
does not wait for torch and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        homes: by submodule the names that it has, with spaces between them.
    """

    def get(name: str) -> Any:
        for home, names in homes.items():
            if name in names.split():
                return getattr(import_module(f"{package}.{home}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
