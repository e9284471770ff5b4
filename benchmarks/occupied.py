"""How much memory is occupied now, and was at most: on a GPU what torch allocated, on a CPU what
the system counts as resident (Linux).
"""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["ENVIRONMENT", "forget_peak", "peak", "resident"]

ENVIRONMENT = {
    # One heap for all threads, and larger blocks go back to the system when they are freed, so that
    # what is resident follows what is allocated.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""For a process whose peaks are measured on a CPU."""


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS")


def forget_peak(device: str) -> int:
    """Forget the peak so far; the bytes that are in use now."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Linux: 5 resets the peak of the resident set.
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def peak(device: str) -> int:
    """Bytes that were in use at most since ``forget_peak``."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(f"{name}:")).split()[1]) * 1024
