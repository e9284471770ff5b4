"""How much one client may ask of a server. It imports nothing heavy: a wrong limit is told before
a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from allmem.errors import AllMemError
from allmem.schema import check_positive

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Raises:
        AllMemError: on a number out of its range.
    """

    max_prompt_tokens: int | None = None
    """``None`` for what the engine can read."""
    max_tokens: int = 8192
    """Of an answer; also its length where a chat client names none."""
    max_choices: int = 16
    """Answers to one request: prompts times ``n``."""
    timeout: float = 600.0
    """Seconds from the first to the last token of a request, waiting for a slot included."""
    max_body_bytes: int = 16_000_000
    head_timeout: float = 60.0
    """Seconds in which a request's head must have come."""
    body_timeout: float = 60.0
    """Seconds in which a body must have come."""
    silence: float = 10.0
    """Seconds after which a stream with nothing to tell sends a comment, so that no proxy takes it
    for dead: a long prompt takes minutes on a CPU."""
    send_timeout: float = 60.0
    """Seconds after which a client that reads nothing of a stream is taken for gone."""

    def __post_init__(self) -> None:
        check_positive(
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens,
            max_choices=self.max_choices,
            max_body_bytes=self.max_body_bytes,
        )
        for name in ("timeout", "head_timeout", "body_timeout", "silence", "send_timeout"):
            seconds = getattr(self, name)
            if not 0 < seconds < float("inf"):
                raise AllMemError(f"{name} = {seconds} must be a number of seconds above 0")
