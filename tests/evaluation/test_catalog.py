"""Tasks by name: every suite keeps the catalog's contract, and unknown names meet the nearest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.catalog import (
    SUITES,
    find_task,
    find_tasks,
    groups_within,
    list_groups,
    list_tasks,
)


def test_every_task_has_its_name_and_a_line_about_it() -> None:
    listed = list_tasks()
    assert len({one.name for one in listed}) == len(listed)
    for one in listed:
        assert one.name.partition("/")[0] in SUITES
        assert find_task(one.name).name == one.name
        assert one.metric
        assert one.about


def test_groups_hold_tasks_that_there_are() -> None:
    names = {one.name for one in list_tasks()}
    for group, tasks in list_groups().items():
        assert tasks, group
        assert len(set(tasks)) == len(tasks), group
        assert names.issuperset(tasks), group
        assert group not in names


def test_a_suite_a_group_and_a_task_give_each_task_once() -> None:
    group, members = next((g, m) for g, m in list_groups().items() if len(m) > 1)
    found, groups = find_tasks([group, members[0], group])
    assert [task.name for task in found] == list(members)
    assert groups[group] == members
    suite = members[0].partition("/")[0]
    whole = [task.name for task in find_tasks([suite])[0]]
    assert set(members) <= set(whole) or suite in list_groups()
    assert group not in groups_within(members[1:])


def test_a_task_needs_no_other_suite() -> None:
    """One suite's task is made without the libraries of the others."""
    code = (
        "import sys; from allmem.evaluation.catalog import find_task; find_task('ruler/vt');"
        "print([name for name in sys.modules if name.startswith('allmem.evaluation.suites.l')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_unknown_names_meet_the_nearest() -> None:
    with pytest.raises(AllMemError, match=r"unknown task 'ruler/vtt'; did you mean 'ruler/vt'"):
        find_task("ruler/vtt")
    with pytest.raises(AllMemError, match=r"unknown task 'longbenhc'; did you mean 'longbench'"):
        find_tasks(["longbenhc"])
    with pytest.raises(AllMemError, match="no task was named"):
        find_tasks([])
