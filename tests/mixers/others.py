"""Code of others to compare with, from packages that the tests do not require."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["naive"]


def naive(operation: str) -> ModuleType:
    """flash-linear-attention's plain PyTorch reference of one operation, such as ``"gla"``; skips
    the test where fla-core is not installed.

    The file is loaded by its path, since importing ``fla`` itself asks for triton. A reference that
    imports more of ``fla`` (that of Titans) cannot be had so.
    """
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fla-core is not installed")
    path = Path(spec.submodule_search_locations[0]) / "ops" / operation / "naive.py"
    if not path.exists():
        pytest.skip(f"this fla-core has no {path.relative_to(path.parents[2])}")
    # Its sources rearrange tensors with it.
    pytest.importorskip("einops")
    file = importlib.util.spec_from_file_location(f"fla_naive_{operation}", path)
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module
