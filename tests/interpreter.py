"""Where kernels are tested: in triton's interpreter on a CPU, and, with ``-m gpu``, compiled.

Triton decides for each function, when it is defined, whether it will be interpreted, and torch may
have imported triton long before. So our kernels are imported anew with TRITON_INTERPRET set, and
the functions of triton's own language that were defined without it are replaced meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

KERNELS = ("allmem.attention.kernels.triton_", "allmem.memory.kernels.triton_")


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test's tensors are, while the kernels run there."""
    pytest.importorskip("triton", reason="triton is not installed")
    on_gpu = torch.cuda.is_available()
    if request.param == "cuda":
        if not on_gpu:
            pytest.skip("there is no CUDA device")
        yield torch.device("cuda")
        return
    if on_gpu:
        # The interpreter leaves its mark on triton's modules, and then nothing compiles any more.
        pytest.skip("on a GPU the kernels are tested compiled: -m gpu")
    with interpreting():
        yield torch.device("cpu")


@contextmanager
def interpreting() -> Iterator[None]:
    """Our kernels run in the interpreter inside the block."""
    from triton import JITFunction
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in (tl, tl.standard):
            for name, function in list(vars(module).items()):
                if isinstance(function, JITFunction):
                    patch.setattr(module, name, InterpretedFunction(function.fn))
        forget_kernels()
        yield
    forget_kernels()


def forget_kernels() -> None:
    for name in [name for name in sys.modules if name.startswith(KERNELS)]:
        del sys.modules[name]
