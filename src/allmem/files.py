"""Writing and reading safetensors files so that nothing is ever lost, half-written or silently
altered.

A file is written beside its destination and renamed when complete, and carries a checksum over its
tensors and metadata that is verified on reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from allmem.errors import AllMemError

__all__ = ["atomic_folder", "atomic_path", "read_tensors", "write_tensors"]

HEADER = "allmem"
"""The one metadata key of our files; its value is JSON."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises:
        AllMemError: if the folder does not exist or the disk refuses (full, read-only).
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        part.open("xb").close()
        mode = part.stat().st_mode
    except OSError as error:
        raise AllMemError(
            f"cannot write {target}: {error.strerror}; choose another folder"
        ) from error
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        # The writer may have put a file of its own here that only its owner can read.
        part.chmod(mode)
        part.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AllMemError(
            f"cannot write {target}: {reason}; nothing was changed. Free some space or choose "
            "another folder"
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str],
    lead: bool = True,
    wait: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """A folder beside ``path`` to write into; renamed to ``path`` on success, removed on failure.

    Args:
        lead: whether this process makes and renames it, of several that write into it.
        wait: returns when all of them have called it.

    Raises:
        AllMemError: if the disk refuses (full, read-only), or ``path`` is there already.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        if lead:
            if target.exists():
                raise AllMemError(f"{target} is there already; choose another folder")
            # What a run that was killed left behind.
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        wait()
        yield part
        wait()
        if lead:
            part.replace(target)
        wait()
    except (OSError, AllMemError) as error:
        if lead:
            shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, AllMemError):
            raise
        raise AllMemError(
            f"cannot write {target}: {error.strerror}; nothing was changed. Free some space or "
            "choose another folder"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], header: dict[str, Any]
) -> None:
    """Write tensors with a JSON-able header.

    Args:
        kind: what the file is ("adapter", "state"); checked on reading.

    Raises:
        AllMemError: if the file cannot be written; nothing is left behind then.
    """
    # A copy of each: safetensors refuses tensors that share storage.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = {"kind": kind, **header}
    full = json.dumps({**header, "sha256": _checksum(plain, header)})
    with atomic_path(path) as part:
        save_file(plain, part, metadata={HEADER: full})


def read_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that ``write_tensors`` made.

    Raises:
        AllMemError: if the file is missing, truncated, altered, or of another kind.
    """
    source = Path(path)
    if not source.is_file():
        raise AllMemError(f"there is no file {source}")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(metadata[HEADER])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise AllMemError(
            f"{source} is not a complete AllMem {kind} file ({error}); it may be truncated: make "
            "it again"
        ) from error
    expected = header.pop("sha256", None)
    if header.get("kind") != kind:
        raise AllMemError(f"{source} holds a {header.get('kind')!r}, not a {kind!r}")
    if expected != _checksum(tensors, header):
        raise AllMemError(
            f"{source} was altered after it was written (checksum differs); make it again"
        )
    return tensors, header
