"""Whether vLLM is there, found out without importing it."""

from __future__ import annotations

from importlib.util import find_spec

from allmem.errors import AllMemError

__all__ = ["has_vllm", "require_vllm"]


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return find_spec("vllm") is not None


def require_vllm(instead: str) -> None:
    """Refuse to go on without vLLM.

    Args:
        instead: what to do without it.

    Raises:
        AllMemError: if it is not installed.
    """
    if not has_vllm():
        raise AllMemError(
            f"the engine vllm is not installed; install it with pip install 'allmem[serve]', or "
            f"{instead}"
        )
