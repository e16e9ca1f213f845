"""What became of each host, made of ansible-runner's events one by one. Pure: no clock, file or process.

An event is a mapping with `event` and `event_data`; what is unknown or malformed is passed over, since what
ansible prints is no interface of ours. A host is done only when the playbook's last task said how it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError

#: Names of tasks that say more than that they are done.
TELLS = "Tell how the host is"
_UNFINISHED = "Take up an earlier run that ended halfway"
_RUNS_VMS = "Refuse to restart under running VMs"
_ENROLS = "Tell what the agent said"
_STARTS = "Start the agent"
_MAX_MESSAGE = 400
#: What ansible and ssh put before the words that count.
_PREFIX = re.compile(r"^(?:Task failed: |Module failed: |Failed to connect to the host via ssh: |ssh: )+")


class State(StrEnum):
    """How far a host is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class HostOutcome:
    """One host.

    Args:
        task: what is done now, or was last.
        tasks: how many tasks were carried out; skipped ones do not count.
        changed: names of the tasks that changed something (or would, with `check`), with their items.
        waits: what needs a restart or a hand.
        init: whether a running system was set, not only its files.
        enrolled: whether it is a controller's host already.
    """

    host: str
    state: State = State.RUNNING
    task: str = ""
    tasks: int = 0
    changed: list[str] = field(default_factory=list)
    resumed: bool = False
    waits: list[str] = field(default_factory=list)
    init: bool = False
    enrolled: bool = False
    disk_free_gib: int = 0
    error: BulkheadError | None = None


class Outcomes:
    """All hosts of one run; `see` takes the next event.

    Args:
        last_task: the task after which a host is done.
    """

    def __init__(self, last_task: str = TELLS) -> None:
        self.hosts: dict[str, HostOutcome] = {}
        self._last = last_task

    def see(self, event: Mapping[str, Any]) -> HostOutcome | None:
        """Take an event; return the host that it is about, if any."""
        kind, data = event.get("event"), event.get("event_data")
        if (
            not isinstance(kind, str)
            or not isinstance(data, Mapping)
            or not isinstance(data.get("host"), str)
        ):
            return None
        host = self.hosts.setdefault(data["host"], HostOutcome(data["host"]))
        task = _task(data)
        found = data.get("res")
        result: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        if kind == "runner_on_start":
            host.task = task
        elif kind == "runner_item_on_ok" and result.get("changed") is True:
            host.changed.append(f"{task}: {_item(result)}")
        elif kind == "runner_on_ok":
            self._ok(host, task, data, result)
        elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            host.state = State.FAILED
            unreachable = kind == "runner_on_unreachable"
            host.error = _unreachable(host.host, result) if unreachable else _failed(host.host, data, result)
        return host

    def end(self) -> list[HostOutcome]:
        """Return all hosts by name, when no event will come any more; who is not done has failed."""
        for host in self.hosts.values():
            if host.state is State.RUNNING:
                host.state = State.FAILED
                host.error = HostError(
                    "prepare.ended", f"{host.host}: the run ended at: {host.task or 'its start'}"
                )
        return [self.hosts[name] for name in sorted(self.hosts)]

    def _ok(self, host: HostOutcome, task: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        name = data.get("task")
        host.tasks += 1
        if result.get("changed") is True and not any(each.startswith(f"{task}: ") for each in host.changed):
            host.changed += [f"{task}: {each}" for each in _changed_in(result)] or [task]
        if name == _UNFINISHED:
            host.resumed = True
        if name == TELLS:
            _tell(host, result.get("msg"))
        if name == _ENROLS:
            host.enrolled = True
        if name == self._last:
            host.state = State.DONE


def _tell(host: HostOutcome, told: Any) -> None:
    if not isinstance(told, Mapping):
        return
    waits = told.get("waits")
    host.waits = [str(each) for each in waits] if isinstance(waits, list) else []
    host.init, host.enrolled = told.get("init") is True, told.get("enrolled") is True
    free = told.get("disk_free_gib")
    host.disk_free_gib = free if isinstance(free, int) else 0


def _task(data: Mapping[str, Any]) -> str:
    role = data.get("role")
    return f"{role}: {data.get('task')}" if isinstance(role, str) and role else str(data.get("task") or "")


def _item(result: Mapping[str, Any]) -> str:
    item = result.get("_ansible_item_label", result.get("item"))
    return str(item.get("dest") or item.get("path") or item) if isinstance(item, Mapping) else str(item)


def _changed_in(result: Mapping[str, Any]) -> list[str]:
    """Return what a script of ours says that it changed: lines of `changed: WHAT`."""
    said = result.get("stdout")
    lines = said.splitlines() if isinstance(said, str) else []
    return [line.removeprefix("changed: ") for line in lines if line.startswith("changed: ")]


def _message(result: Mapping[str, Any]) -> str:
    """Return the words of a failure on one line: the module's, and the end of what a program said."""
    said = [str(result[name]).strip() for name in ("msg", "stderr", "module_stderr") if result.get(name)]
    text = " ".join(" ".join(said).split())
    text = _PREFIX.sub("", text)
    return text if len(text) <= _MAX_MESSAGE else "... " + text[-_MAX_MESSAGE:]


def _unreachable(host: str, result: Mapping[str, Any]) -> BulkheadError:
    text = _message(result)
    if re.search(r"REMOTE HOST IDENTIFICATION HAS CHANGED", text):
        return HostError(
            "prepare.host_key_changed", f"{host}: its host key is another than the one known here",
            hint="find out why; if the host was installed anew: ssh-keygen -R ADDRESS",
        )  # fmt: skip
    if re.search(r"Host key verification failed|authenticity of host", text):
        return HostError(
            "prepare.host_key_unknown", f"{host}: its host key is not known here",
            hint="connect once with ssh and compare it, or give --accept-new-key",
        )  # fmt: skip
    if re.search(r"Permission denied|Too many authentication failures|Load key", text):
        return HostError(
            "prepare.wrong_key", f"{host}: it does not accept this key or user",
            hint="give --user and --key as ssh -i KEY USER@HOST works",
        )  # fmt: skip
    return HostError("prepare.unreachable", f"{host}: ssh does not reach it: {text or 'no message'}")


def _failed(host: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> BulkheadError:
    text, task = _message(result), _task(data)
    if text.startswith("wrong_os: "):
        return InvalidInputError(
            "prepare.wrong_os", f"{host}: {text.removeprefix('wrong_os: ')}", field="HOST"
        )
    if re.search(r"sudo: a password is required|Missing sudo password|Incorrect sudo password", text):
        return HostError(
            "prepare.no_root", f"{host}: sudo wants a password, or another one", hint="give --ask-become-pass"
        )
    if re.search(
        r"python3?: (command )?not found|No such file or directory.*python|interpreter .*not found", text
    ):
        return HostError(
            "prepare.no_python", f"{host}: it has no Python yet, so nothing can be looked at",
            hint="run it without --check once, or apt-get install python3 python3-apt there",
        )  # fmt: skip
    if data.get("task") == _RUNS_VMS:
        return HostError(
            "prepare.vms_running", f"{host}: VMs run, so it is not restarted; all else is done",
            hint=f"bulkhead host drain {host} --reason WHY, then the same with --reboot",
        )  # fmt: skip
    if data.get("task") == _ENROLS:
        return HostError("prepare.enrol", f"{host}: {text}", hint="prepare it again: a token works once")
    if data.get("task") == _STARTS:
        return HostError(
            "prepare.agent", f"{host}: it is enrolled, but its agent does not start: {text}",
            hint="on it: journalctl -u bulkhead-agent",
        )  # fmt: skip
    return HostError(
        "prepare.failed", f"{host}: {task}: {text or 'no message'}",
        hint="mend that and run the same again: it goes on where it has to",
    )  # fmt: skip
