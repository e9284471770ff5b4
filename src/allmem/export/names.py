"""What a model is called where others read it: never by a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

from allmem.opening import PACKAGED

__all__ = ["hub_file", "on_hub", "published"]


def published(source: str) -> str:
    """A name without a path: as it is on the hub, or the last part."""
    local = Path(source).expanduser().exists()
    if not local and (source == PACKAGED or on_hub(source)):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def on_hub(name: str) -> bool:
    """Whether this names a model that was fetched from the hub, not a path of the same form."""
    return hub_file(name, "config.json") is not None


def hub_file(name: str, file: str, download: bool = False) -> Path | None:
    """A file of a hub model that lies in the cache, or can be fetched into it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if Path(name).exists() or not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
        return None
    try:
        found = hf_hub_download(name, file) if download else try_to_load_from_cache(name, file)
    except (OSError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None
