"""AllMem: any pretrained decoder language model, with a memory of constant size.

    model = allmem.convert("HuggingFaceTB/SmolLM2-135M-Instruct", window=1024, sinks=16, chunk=256)

Importing this package is enough for transformers' Auto classes to load converted checkpoints.
Nothing heavy is imported before it is used, so that the command line answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allmem import _registration
from allmem._lazy import lazily
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

__getattr__ = lazily(
    __name__,
    {
        "models.adapter": "load_adapter save_adapter",
        "models.cache": "AllMemCache",
        "models.configuration": "AllMemConfig",
        "models.conversion": "convert",
        "models.modeling": "AllMemForCausalLM",
        "models.sources": "load_tokenizer",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)


_registration.install()
