"""Every kernel through triton's compiler for an H100, which needs no GPU: what the interpreter does
not check. Several minutes on a slow machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.memory.kernels.test_limits import H100

SPILLS = 64
"""Bytes that may be: a few spilled registers of a kernel that uses all others."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fit_an_h100() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "tests.memory.kernels.compiling", "90"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in found} == {
        "_read_kernel",
        "_factors_kernel",
        "_forward_kernel",
        "_backward_kernel",
        "_linear_kernel",
        "_norms_kernel",
        "_squares_kernel",
        "_write_kernel",
        "_part_kernel",
        "_join_kernel",
    }
    for kernel in found:
        assert kernel["shared"] <= kernel["limit"] <= H100, kernel
        assert kernel["spilled"] <= SPILLS, kernel
        if kernel["case"].startswith("step") and "bfloat16" in kernel["case"]:
            assert kernel["tensor_cores"], kernel
