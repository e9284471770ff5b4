"""AllMem: any pretrained decoder language model, with a memory of constant size.

    model = allmem.convert("HuggingFaceTB/SmolLM2-135M-Instruct", window=1024, sinks=16, chunk=256)

Importing this package is enough for transformers' Auto classes to load converted checkpoints.
Nothing heavy is imported before it is used, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allmem import _registration
from allmem._version import __version__
from allmem.config import MemoryConfig, WindowConfig
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.models.adapter import load_adapter, save_adapter
    from allmem.models.cache import AllMemCache
    from allmem.models.configuration import AllMemConfig
    from allmem.models.conversion import convert
    from allmem.models.modeling import AllMemForCausalLM
    from allmem.models.sources import load_tokenizer

__all__ = [
    "AllMemCache",
    "AllMemConfig",
    "AllMemError",
    "AllMemForCausalLM",
    "MemoryConfig",
    "WindowConfig",
    "__version__",
    "convert",
    "load_adapter",
    "load_tokenizer",
    "save_adapter",
]

_HOMES = {
    "AllMemCache": "allmem.models.cache",
    "AllMemConfig": "allmem.models.configuration",
    "AllMemForCausalLM": "allmem.models.modeling",
    "convert": "allmem.models.conversion",
    "load_adapter": "allmem.models.adapter",
    "load_tokenizer": "allmem.models.sources",
    "save_adapter": "allmem.models.adapter",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'allmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_registration.install()
