"""lm-eval's task objects, made without its noise, and without the network where rows are given.

It knows how tasks are loaded; what is asked of a model and what an answer is worth stands in
``task.py``. lm-eval takes a second to import: nothing here does so before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from allmem.errors import AllMemError, first_line

__all__ = ["Documents", "characters_of", "draws", "load_task", "task_names"]

Document = dict[str, Any]

LOGGERS = ("lm_eval", "lm-eval", "datasets", "nltk", "root")


class Documents(list[Document]):
    """Rows with what lm-eval uses of a ``datasets.Dataset``: values stay as they are, where Arrow
    would give every row the fields of all."""

    @property
    def features(self) -> dict[str, None]:
        """The names of the fields, as the keys of a dictionary."""
        return dict.fromkeys(key for document in self for key in document)

    def map(self, change: Callable[[Document], Document]) -> Self:
        """With what ``change`` makes of each row added to it."""
        return type(self)([{**document, **change(document)} for document in self])


def task_names(folder: str) -> tuple[str, ...]:
    """The names of the tasks that a folder of lm-eval defines."""
    return tuple(_manager(folder).all_subtasks)


def load_task(
    folder: str,
    name: str,
    documents: Sequence[Document] | None = None,
    shots: Sequence[Document] = (),
    **changes: Any,
) -> Any:
    """One of lm-eval's tasks.

    Args:
        folder: of lm-eval, in which the task is defined.
        documents: the rows to be answered, as the hub has them; ``None`` to have lm-eval fetch
            them.
        shots: rows with answers, for tasks whose prompts begin with some.
        changes: to the task's definition.

    Raises:
        AllMemError: if lm-eval or a library that the task needs is missing, or the hub does not
            answer.
    """
    if documents is not None:
        changes |= _own_rows(Documents(documents), Documents(shots))
    try:
        with _quiet(), draws(0):
            # A group of one is how lm-eval takes changes to a task that it knows by name.
            group = {"group": "allmem", "task": [{"task": name, **changes}]}
            return _manager(folder).load([group])["tasks"][name]
    except (ImportError, AssertionError) as error:
        raise AllMemError(
            f"lm-eval's task {name!r} needs a library that is missing ({first_line(error)}); "
            "install allmem[eval]"
        ) from error
    except OSError as error:
        raise AllMemError(
            f"the rows of {name!r} cannot be fetched ({first_line(error)}); name a folder that "
            "has them (--data)"
        ) from error


@contextlib.contextmanager
def draws(seed: str | int) -> Iterator[None]:
    """Everything that lm-eval draws at random in here comes from ``seed``; afterwards the
    program's own numbers go on as if nothing had been drawn."""
    kept = random.getstate()
    random.seed(seed)
    factory = getattr(sys.modules.get("langdetect"), "DetectorFactory", None)
    usual = getattr(factory, "seed", None)
    if factory is not None:
        factory.seed = 0
    try:
        yield
    finally:
        random.setstate(kept)
        if factory is not None:
            factory.seed = usual


@contextlib.contextmanager
def characters_of(texts: Iterable[str]) -> Iterator[None]:
    """lm-eval's filters look no further than the characters of these texts.

    The filter of GPQA's answers asks of all 1,114,112 characters, at every answer, which are
    punctuation; those that do not occur change nothing.
    """
    try:
        from lm_eval.filters import extraction
    except ImportError:
        yield
        return
    usual = extraction.sys
    highest = max((ord(character) for text in texts for character in text), default=0)
    extraction.sys = SimpleNamespace(maxunicode=highest + 1)
    try:
        yield
    finally:
        extraction.sys = usual


def _own_rows(documents: Documents, shots: Documents) -> Document:
    """Changes to a task that make it use given rows, and no others."""
    splits = {"test": documents} | ({"shots": shots} if shots else {})
    return {
        "custom_dataset": lambda **_: splits,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "shots" if shots else None,
    }


@functools.cache
def _manager(folder: str) -> Any:
    """What lm-eval knows of one of its folders; to search all of them takes ten seconds."""
    try:
        with _quiet():
            import lm_eval
            from lm_eval.tasks import TaskManager

            path = Path(lm_eval.__file__).parent / "tasks" / folder
            return TaskManager(include_path=str(path), include_defaults=False)
    except ImportError as error:
        raise AllMemError(
            f"short tasks need lm-eval, which is missing ({first_line(error)}); install "
            "allmem[eval]"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without log lines, progress bars and prints of the libraries: errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        shown = not are_progress_bars_disabled()
        disable_progress_bars()
    except ImportError:
        shown = False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            enable_progress_bars()
