"""Packages that import a name when it is used."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

PACKAGES = ["allmem", "allmem.arena", "allmem.cost", "allmem.data", "allmem.distill"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_there_and_none_is_hidden_by_a_module(name: str) -> None:
    """A submodule becomes an attribute once it is imported, and would take the name's place."""
    package = import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    for one in package.__all__:
        getattr(package, one)
    with pytest.raises(AttributeError, match="nosuch"):
        package.nosuch  # noqa: B018
