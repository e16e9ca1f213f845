"""The playbooks: what they may use, that each setting names its check, and the scripts that run on a host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.model.doctor import CHECKS

PLAYBOOKS = Path(__file__).parents[3] / "playbooks"
ROLES = PLAYBOOKS / "roles"
LIVE, REASONS, MACHINE = (
    ROLES / name for name in ("finish/files/live.sh", "finish/files/reasons.sh", "check/files/machine.sh")
)
#: Keywords of a task that are no module.
KEYWORDS = {
    "name", "when", "tags", "register", "loop", "loop_control", "vars", "notify", "listen", "become",
    "no_log", "changed_when", "failed_when", "check_mode", "environment",
}  # fmt: skip


def tasks() -> list[tuple[Path, dict[str, Any]]]:
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(ROLES.glob("*/*/main.yml")):
        if path.parent.name in ("tasks", "handlers"):
            found += [(path, each) for each in yaml.safe_load(path.read_text())]
    for name in ("site.yml", "enrol.yml"):
        for play in yaml.safe_load((PLAYBOOKS / name).read_text()):
            found += [(PLAYBOOKS / name, each) for each in play.get("tasks", [])]
    return found


def defaults(role: str) -> dict[str, Any]:
    found = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    assert isinstance(found, dict)
    return found


class _OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that says one key twice, which YAML takes without a word."""


def _once(loader: _OnceLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
    assert len(set(keys)) == len(keys), f"{node.start_mark}: {sorted({k for k in keys if keys.count(k) > 1})}"
    return loader.construct_mapping(node, deep=True)


_OnceLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _once)


@pytest.mark.parametrize(
    "path", sorted(PLAYBOOKS.rglob("*.yml")), ids=lambda path: str(path.relative_to(PLAYBOOKS))
)
def test_nothing_is_said_twice(path: Path) -> None:
    yaml.load(path.read_text(), _OnceLoader)


def test_only_modules_that_come_with_ansible_are_used() -> None:
    found = tasks()
    assert len(found) > 30
    for path, task in found:
        modules = set(task) - KEYWORDS
        assert len(modules) == 1, f"{path}: {task['name']}: {modules}"
        assert modules.pop().startswith("ansible.builtin."), f"{path}: {task['name']}"


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("kernel", "bulkhead_kernel_arguments"),
        ("kernel", "bulkhead_module_options"),
        ("kernel", "bulkhead_sysctls"),
        ("kernel", "bulkhead_sysfs"),
        ("hypervisor", "bulkhead_qemu_settings"),
        ("hypervisor", "bulkhead_libvirtd_settings"),
    ],
)
def test_each_setting_names_its_check_and_its_task_has_the_tag(role: str, name: str) -> None:
    settings = defaults(role)[name]
    tags = {tag for _, task in tasks() for tag in task.get("tags", [])}
    assert settings
    for each in settings:
        assert each["check"] in CHECKS, each
        assert each["check"] in tags, each


@pytest.mark.parametrize("name", ["site.yml", "enrol.yml"])
def test_ansible_reads_the_playbook(name: str, tmp_path: Path) -> None:
    inventory = PLAYBOOKS / "inventories" / "example.yml"
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--syntax-check", "-i", inventory, name],
        cwd=PLAYBOOKS,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_join_token_is_in_no_log_and_on_no_command_line() -> None:
    tasks_of = yaml.safe_load((PLAYBOOKS / "enrol.yml").read_text())[0]["tasks"]
    (enrol,) = (each for each in tasks_of if each["name"] == "Enrol")
    assert enrol["no_log"] is True
    assert "join_tokens" not in str(enrol["ansible.builtin.command"]["argv"])
    assert "join_tokens" in enrol["ansible.builtin.command"]["stdin"]


def run(script: Path, lines: list[str], **environment: str) -> list[str]:
    done = subprocess.run(
        ["sh", "-c", script.read_text()],
        input="\n".join(lines),
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_live_value_is_set_once(tmp_path: Path) -> None:
    setting = tmp_path / "run"
    setting.write_text("1\n")
    line = [f"value {setting} 0"]
    assert run(LIVE, line, DRY="1") == [f"changed: {setting}: 1 -> 0"]
    assert setting.read_text() == "1\n"
    assert run(LIVE, line) == [f"changed: {setting}: 1 -> 0"]
    assert setting.read_text() == "0\n"
    assert run(LIVE, line) == []


def test_a_choice_in_brackets_is_read_as_the_kernel_shows_it(tmp_path: Path) -> None:
    setting = tmp_path / "shmem_enabled"
    setting.write_text("always within_size advise [never] deny force\n")
    assert run(LIVE, [f"value {setting} never"], DRY="1") == []
    assert run(LIVE, [f"value {setting} always"], DRY="1") == [f"changed: {setting}: never -> always"]


def test_a_setting_that_the_kernel_lacks_is_passed_over_and_the_next_one_is_set(tmp_path: Path) -> None:
    setting = tmp_path / "there"
    setting.write_text("a\n")
    assert run(LIVE, [f"value {tmp_path}/missing 1", f"value {setting} b"]) == [f"changed: {setting}: a -> b"]


def write(files: list[dict[str, str]], **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", (PLAYBOOKS / "files" / "write.py").read_text()],
        input=json.dumps(files),
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_file_is_written_once_with_its_mode_and_only_told_of_when_dry(tmp_path: Path) -> None:
    dest = tmp_path / "a.conf"
    wanted = [{"dest": str(dest), "mode": "600", "text": "one\n"}]
    assert write(wanted, DRY="1") == [f"changed: {dest}"]
    assert not dest.exists()
    assert write(wanted) == [f"changed: {dest}"]
    assert (dest.read_text(), dest.stat().st_mode & 0o7777) == ("one\n", 0o600)
    assert write(wanted) == []
    dest.chmod(0o644)
    assert write(wanted) == [f"changed: {dest}"]
    dest.write_text("strayed\n")
    assert write(wanted) == [f"changed: {dest}"]
    assert dest.read_text() == "one\n"


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    dest, other = tmp_path / "a.conf", tmp_path / "other"
    other.write_text("text\n")
    dest.symlink_to(other)
    assert write([{"dest": str(dest), "mode": "644", "text": "text\n"}]) == [f"changed: {dest}"]
    assert not dest.is_symlink()
    assert other.read_text() == "text\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.conf", "other"]


def test_what_waits_for_a_restart_is_told_and_nothing_else(tmp_path: Path) -> None:
    pages = tmp_path / "nr_hugepages"
    pages.write_text("99\n")
    given = Path("/proc/cmdline").read_text().split()
    lines = [f"pages {pages} 100", "argument bulkhead.never=1", *(f"argument {given[0]}",) * bool(given)]
    found = [each for each in run(REASONS, lines) if "distribution" not in each]
    fewer = "; where a restart brings no more, ask for fewer: bulkhead_hugepages"
    assert found == [
        f"reboot: {pages} has 99 of 100 pages{fewer}",
        "reboot: kernel argument bulkhead.never=1",
    ]
    pages.write_text("100\n")
    assert not [each for each in run(REASONS, [f"pages {pages} 100"]) if "pages" in each]


def test_no_iommu_after_a_restart_is_for_hands_and_before_it_for_the_restart(tmp_path: Path) -> None:
    (booted_with, *_) = Path("/proc/cmdline").read_text().split()
    groups = tmp_path / "iommu_groups"

    def told(argument: str) -> list[str]:
        return [each for each in run(REASONS, [f"groups {groups} {argument}"]) if "distribution" not in each]

    (line,) = told(booted_with)
    assert line.startswith("by hand: no IOMMU works here")
    assert "VT-d or AMD-Vi" in line
    assert told("bulkhead.never=1") == []
    groups.mkdir()
    assert told(booted_with) == [line]
    (groups / "0").mkdir()
    assert told(booted_with) == []


def test_the_machine_is_read_as_json() -> None:
    connection = "192.0.2.1 50000 192.0.2.2 2222"
    (line,) = run(MACHINE, [], SSH_CONNECTION=connection)
    found = json.loads(line)
    assert 2222 in found["ssh_ports"]
    assert found["disk_free_gib"] >= 0
    assert all(re.fullmatch(r"[0-9,-]*", node["first_core"]) for node in found["nodes"])
