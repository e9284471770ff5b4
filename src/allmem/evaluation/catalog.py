"""Every task by its name, and groups of them.

A suite is a module with ``TASKS``, a dictionary from names to functions that make a task, and
``GROUPS``, from names to the names of tasks. A task's name begins with its suite's, so that one
suite is imported to make it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NamedTuple

from allmem.errors import AllMemError
from allmem.evaluation.task import Task

__all__ = ["Listed", "find_task", "find_tasks", "groups_within", "list_groups", "list_tasks"]

SUITES = {
    "longbench": "allmem.evaluation.suites.longbench",
    "infinitebench": "allmem.evaluation.suites.infinitebench",
    "lveval": "allmem.evaluation.suites.lveval",
    "ruler": "allmem.evaluation.suites.ruler",
    "short": "allmem.evaluation.suites.short",
    "probes": "allmem.evaluation.probes",
}
"""Modules by the name with which their tasks begin."""


class Listed(NamedTuple):
    """A task as a list shows it."""

    name: str
    metric: str
    about: str


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        AllMemError: if there is none, with the nearest name.
    """
    make = _tasks_of(_suites_for(name)).get(name)
    if make is None:
        raise AllMemError(_unknown(name))
    return make()


def find_tasks(names: Iterable[str]) -> tuple[list[Task], dict[str, tuple[str, ...]]]:
    """Tasks by names of tasks, groups and suites (a suite is all its tasks), none twice; and all
    groups whose tasks are among them.

    Raises:
        AllMemError: on an unknown name, with the nearest one.
    """
    found: dict[str, None] = {}
    for name in names:
        suites = _suites_for(name)
        groups = _groups_of(suites)
        tasks = _tasks_of(suites)
        if name in groups:
            members: Iterable[str] = groups[name]
        elif name in tasks:
            members = [name]
        elif name in SUITES:
            members = tasks
        else:
            raise AllMemError(_unknown(name))
        found |= dict.fromkeys(members)
    if not found:
        raise AllMemError("no task was named; `allmem evaluate --list` shows all")
    return [find_task(name) for name in found], groups_within(found)


def groups_within(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The groups of several tasks that are all among ``names``."""
    known = set(names)
    suites = [suite for suite in SUITES if any(_belongs(name, suite) for name in known)]
    groups = _groups_of(suites)
    return {group: members for group, members in groups.items() if known.issuperset(members)}


def list_tasks() -> list[Listed]:
    """Every task."""
    listed = []
    for name, make in _tasks_of(SUITES).items():
        task = make()
        about = inspect.getdoc(type(task)) or ""
        listed.append(Listed(name, task.metric, about.partition("\n")[0]))
    return listed


def list_groups() -> dict[str, tuple[str, ...]]:
    """Every group and its tasks."""
    return _groups_of(SUITES)


def _belongs(name: str, suite: str) -> bool:
    return name.partition("/")[0] == suite


def _suites_for(name: str) -> Iterable[str]:
    """The suite that a name begins with, else all of them."""
    own = [suite for suite in SUITES if _belongs(name, suite)]
    return own or list(SUITES)


def _tasks_of(suites: Iterable[str]) -> dict[str, Callable[[], Task]]:
    return {name: make for suite in suites for name, make in _module(suite).TASKS.items()}


def _groups_of(suites: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name: tasks for suite in suites for name, tasks in _module(suite).GROUPS.items()}


def _module(suite: str) -> Any:
    return import_module(SUITES[suite])


def _unknown(name: str) -> str:
    known = [*SUITES, *_groups_of(SUITES), *_tasks_of(SUITES)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else "."
    return f"unknown task {name!r}{hint} `allmem evaluate --list` shows all tasks and groups"
