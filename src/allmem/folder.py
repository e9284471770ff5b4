"""Saving a model and its tokenizer as one folder, whole or not at all.

The folder is written beside its destination and renamed when complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from allmem.choices import Conversion
from allmem.errors import AllMemError
from allmem.models.configuration import AllMemConfig
from allmem.opening import open_model

__all__ = ["check_output", "convert_to_folder", "save_folder"]


def check_output(output: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Refuse a destination that would overwrite something, before any work is done.

    Args:
        force: replace a folder if it holds a model; anything else is never replaced.

    Raises:
        AllMemError: naming what is in the way.
    """
    target = Path(output)
    if target.is_file():
        raise AllMemError(f"{target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise AllMemError(
                f"{target} exists and is not empty; choose another folder, or replace it (--force)"
            )
        if not (target / "config.json").is_file():
            raise AllMemError(
                f"{target} does not hold a model, so it is not replaced; choose another folder"
            )
    return target


def convert_to_folder(
    source: str,
    output: str | os.PathLike[str],
    conversion: Conversion,
    *,
    force: bool = False,
    **opening: Any,
) -> tuple[Path, AllMemConfig]:
    """Convert a model and save it.

    Args:
        opening: see ``open_model``.

    Raises:
        AllMemError: as ``open_model`` and ``save_folder``; and if there is nothing to convert.
    """
    target = check_output(output, force=force)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise AllMemError(
            f"{target} is the model itself; name another folder for the converted one"
        )
    with_adapter = opening.get("adapter") is not None
    if with_adapter and conversion.reading:
        raise AllMemError(
            f"{', '.join(conversion.reading)}: an adapter brings the sizes that it was trained "
            "with; leave them out here and choose them when reading (allmem ask --window)"
        )
    opened = open_model(source, conversion, **opening)
    if opened.was_converted and not with_adapter:
        raise AllMemError(f"{source} is converted already; there is nothing to do")
    save_folder(opened.model, opened.tokenizer, target, force=force)
    return target, opened.model.config


def save_folder(
    model: PreTrainedModel,
    tokenizer: Any,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
) -> Path:
    """Write model and tokenizer to a folder that ``from_pretrained`` loads.

    Raises:
        AllMemError: if the destination is in use or cannot be written; nothing is left behind then.
    """
    target = check_output(output, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise AllMemError(
            f"cannot write {target}: {error.strerror}; choose another folder"
        ) from error
    try:
        # Temporary folders and safetensors' files are private; a model is what the umask says.
        part.chmod(0o777 & ~_umask())
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for file in part.iterdir():
            file.chmod(0o666 & ~_umask())
        _replace(part, target)
    except (OSError, SafetensorError) as error:
        # safetensors hides the number of the system's error in its message.
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise AllMemError(
            f"cannot write {target}: {reason}; nothing was changed. Free some space or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(part: Path, target: Path) -> None:
    """Put ``part`` in the place of ``target``; the old folder goes only when the new one stands."""
    if not target.exists():
        part.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(old)
        try:
            part.rename(target)
        except OSError:
            old.rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
