"""What a measurement was made with, for those who read it later."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from allmem._version import __version__

__all__ = ["device_name", "made_with"]


def device_name(device: torch.device) -> str:
    """Of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def made_with(device: torch.device) -> str:
    """Versions and device, in a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"allmem {__version__}, {packages}, {device_name(device)}"
