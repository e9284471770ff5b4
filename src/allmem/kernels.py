"""Which fused kernels may compute in the place of torch's operations: none, unless asked for.

    fla      flash-linear-attention's, for matrix-valued memories (``allmem.mixers.kernels``)
    triton   ours, for the paper's memory (``allmem.memory.kernels``)

``use_kernels("fla,triton")``, or ALLMEM_KERNELS=fla,triton in the environment, asks for them; they
round otherwise than torch's operations do. Calls that they cannot compute stay with torch's.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from allmem.errors import AllMemError, unknown_name
from allmem.switch import Switch

__all__ = ["KERNELS", "VARIABLE", "asked_for", "use_kernels"]

KERNELS = ("torch", "fla", "triton")
VARIABLE = "ALLMEM_KERNELS"
PACKAGES = {"torch": (), "fla": ("fla", "triton"), "triton": ("triton",)}


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
