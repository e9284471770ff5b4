"""Which fused kernels may compute in the place of torch's operations: none, unless asked for.

    fla      flash-linear-attention's, for matrix-valued memories (``allmem.mixers.kernels``)
    triton   ours, for the paper's memory (``allmem.memory.kernels``)

``use_kernels("fla,triton")``, or ALLMEM_KERNELS=fla,triton in the environment, asks for them; they
round otherwise than torch's operations do. Calls that they cannot compute stay with torch's, which
is said once. Nothing here imports triton.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

from allmem.errors import AllMemError, unknown_name
from allmem.switch import Switch

__all__ = [
    "KERNELS",
    "VARIABLE",
    "asked_for",
    "interpreted",
    "say_once",
    "triton_cannot_run",
    "triton_chosen",
    "use_kernels",
]

KERNELS = ("torch", "fla", "triton")
VARIABLE = "ALLMEM_KERNELS"
PACKAGES = {"torch": (), "fla": ("fla", "triton"), "triton": ("triton",)}
OLDEST = (8, 0)
"""The first GPUs with bf16 products, by compute capability."""


@cache
def _read(names: str) -> frozenset[str]:
    """Kept, since every layer of every call asks, and looking for packages takes its time."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in KERNELS:
            raise AllMemError(unknown_name("kernels", name, KERNELS))
        if not all(find_spec(package) for package in PACKAGES[name]):
            raise AllMemError(
                f"the kernels {name!r} need {' and '.join(PACKAGES[name])}: "
                "pip install 'allmem[gpu]'"
            )
    return frozenset(chosen)


_switch = Switch(_read)
use_kernels = _switch.use
"""Which kernels may compute inside the block, by names with commas between them; ``torch`` for
none.

Raises:
    AllMemError: if there are no such kernels, or they are not installed.
"""


def asked_for(name: str) -> bool:
    """Whether these kernels are to compute what they can.

    Raises:
        AllMemError: if the environment names unknown kernels, or such as are not installed.
    """
    chosen = _switch.forced
    if chosen is None and VARIABLE in os.environ:
        chosen = _read(os.environ[VARIABLE])
    return chosen is not None and name in chosen


def triton_chosen() -> bool:
    """Whether ours are to compute what they can of a call that is made now: never one that autograd
    records, nor what is compiled, which is fused as it is."""
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled()) and asked_for("triton")


def interpreted() -> bool:
    """Whether triton's kernels run in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def triton_cannot_run(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel of ours can compute there with such numbers; ``None`` if some can."""
    if not _installed():
        return "triton is not installed: pip install 'allmem[gpu]'"
    if interpreted():
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the kernels are not compiled for {device.type} devices here"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"there is no GPU kernel for {dtype}"
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < OLDEST:
        return f"compute capability {properties.major}.{properties.minor} is below 8.0"
    return None


@cache
def say_once(reason: str) -> None:
    """That torch computes what ours were asked for, and why."""
    warnings.warn(
        f"the kernels 'triton' were asked for, but {reason}; torch's operations compute instead",
        RuntimeWarning,
        stacklevel=3,
    )


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
