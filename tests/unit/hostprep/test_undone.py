"""Whatever the playbook sets, the doctor notices when it is undone; docs/hosts.md lists it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hostprep.doctor import examine
from hostprep.probe import read_host
from orchestrator.model.doctor import CHECKS, Finding
from orchestrator.model.evidence import Status
from tests.unit.hostprep.machines import Machine
from tests.unit.hostprep.test_doctor import TURNED
from tests.unit.hostprep.undone import EXEMPT, FILES, Undone, defaults, everything, tasks

DOCUMENT = Path(__file__).parents[3] / "docs" / "hosts.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
ALL = list(everything())
#: Modules that change nothing.
READING = {f"ansible.builtin.{name}" for name in ("setup", "assert", "debug", "meta")}


def ask(made: Machine) -> dict[tuple[str, str], Finding]:
    recording = made.recording()
    found = examine(read_host(recording.root), "br-bulkhead", recording.root, recording.run)
    return {(each.id, each.subject): each for each in found}


def changing() -> dict[str, set[str]]:
    """Tasks that change a host, with their tags."""
    found: dict[str, set[str]] = {}
    for name, (_, task) in tasks().items():
        if READING & set(task) or task.get("changed_when") is False:
            continue
        tags: Any = task.get("tags", [])
        found[name] = {tags} if isinstance(tags, str) else set(tags)
    return found


@pytest.mark.parametrize("undone", ALL, ids=[f"{each.task}: {each.setting}: {each.what}" for each in ALL])
def test_a_setting_that_is_undone_fails_its_check(undone: Undone) -> None:
    made = undone.base()
    before = ask(made)[undone.check]
    assert before.status is Status.PASS, before
    undone.undo(made)
    after = ask(made)[undone.check]
    assert after.status is Status.FAIL, after
    assert after.mend


def test_every_task_that_changes_a_host_names_the_checks_that_hold_it() -> None:
    found = changing()
    assert len(found) > 15
    held = {name: {each.check[0] for each in ALL if each.task == name} for name in found}
    for name, tags in found.items():
        checks = tags & CHECKS
        assert (name in EXEMPT) != bool(checks), f"{name}: no check holds it, and nothing says why"
        assert checks == held[name], f"{name}: tags {sorted(checks)}, tested {sorted(held[name])}"
    assert set(EXEMPT) <= set(found)
    assert {each.task for each in ALL} <= set(found)


def test_a_tag_that_looks_like_a_check_is_one() -> None:
    for name, (_, task) in tasks().items():
        tags = task.get("tags", [])
        for tag in [tags] if isinstance(tags, str) else tags:
            assert tag in CHECKS or re.fullmatch(r"[a-z]+", tag), f"{name}: {tag}"


def test_every_check_of_a_task_is_turned_by_the_doctors_own_tests() -> None:
    assert {each.check[0] for each in ALL} <= {key[0] for *_, key in TURNED}


def test_every_file_of_the_roles_is_among_the_settings() -> None:
    """A new template, unit or driver fails here until somebody says what notices its absence."""
    kernel, written = defaults("kernel")["kernel_files"], set[str]()
    for _, task in tasks().values():
        if "files" in task.get("vars", {}):
            items = task["vars"]["files"]
            written |= {each["dest"] for each in (items if isinstance(items, list) else kernel)}
        assert "ansible.builtin.template" not in task, "files are written by the task's `files`"
    assert written == set(FILES)
    covered = {each.setting for each in ALL}
    # The three whose lines are settings of their own.
    lists = {
        "/etc/modules-load.d/bulkhead.conf",
        "/etc/modprobe.d/bulkhead.conf",
        "/etc/sysctl.d/90-bulkhead.conf",
    }
    assert written - covered == lists


def test_the_table_for_people_is_what_is_tested() -> None:
    rows = ["| Role | Setting | Undone | Check |", "|---|---|---|---|"]
    for each in ALL:
        subject = "" if each.check[1] == "host" else f" ({each.check[1]})"
        row = f"| {each.role} | {each.setting} | {each.what} | {each.check[0]}{subject} |"
        if row not in rows:
            rows.append(row)
    table = "\n".join(rows) + "\n"
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("REGENERATE_GOLDEN"):
        DOCUMENT.write_text(before + BEGIN + table + END + after)
        shown = table
    assert shown == table, "REGENERATE_GOLDEN=1 writes it anew"
