"""Registers the Auto classes when transformers' Auto modules are imported, before or after
``allmem``.

``import allmem`` must be enough for ``AutoModelForCausalLM.from_pretrained``, and must not itself
pay the seconds that importing torch and transformers takes: ``allmem --help`` imports this package
too. So a finder on ``sys.meta_path`` waits for the modules in ``AWAITED`` and imports ours right
after them.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

AWAITED = {
    "transformers.models.auto.configuration_auto": "allmem.models.configuration",
    "transformers.models.auto.modeling_auto": "allmem.models.modeling",
}
"""A module of transformers, and ours that registers itself with it."""


class _Then(importlib.abc.Loader):
    """Runs a module's own loader, then imports another module."""

    def __init__(self, loader: importlib.abc.Loader, then: str) -> None:
        self.loader = loader
        self.then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.then)


class _Waiter(importlib.abc.MetaPathFinder):
    """Steps in for one module, once."""

    def __init__(self, awaited: str) -> None:
        self.awaited = awaited

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.awaited:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, AWAITED[name])
        return spec


def install() -> None:
    """Register now what can be, and the rest as soon as transformers is imported. Idempotent."""
    waiting = {finder.awaited for finder in sys.meta_path if isinstance(finder, _Waiter)}
    for awaited, ours in AWAITED.items():
        if awaited in sys.modules:
            importlib.import_module(ours)
        elif awaited not in waiting:
            sys.meta_path.insert(0, _Waiter(awaited))
