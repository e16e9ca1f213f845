"""Runs a playbook with ansible-runner in a process group of its own, and hands on its events as they come.

ansible-core is called as a program, never imported. Everything that a run is told or leaves behind, tokens
and a sudo password among them, lies in one folder on tmpfs that is gone when the run is over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostprep.probe.files import filesystem_of
from hostprep.run.code import not_installed
from hostprep.run.targets import Login, Targets
from orchestrator.model.errors import HostError

_MEMORY = ("tmpfs", "ramfs")
#: What a run that is ended may take to end its children and connections.
_GRACE_S = 3.0
_SHOWN_LINES = 3
_COLOUR = re.compile(r"(?:\x1b|\\x1b)\[[0-9;]*m")
#: What our own environment must not decide: where ansible looks for its configuration, and for more.
_FOREIGN = ("ANSIBLE_",)


@dataclass(frozen=True)
class PlaybookRun:
    """One run.

    Args:
        playbooks: the folder of the playbooks, with `ansible.cfg`.
        name: the file of the playbook in it.
        variables: `extra vars`, as JSON has them; they may hold secrets.
        check: only tell what would change.
    """

    playbooks: Path
    name: str
    targets: Targets
    login: Login = field(default_factory=Login)
    variables: Mapping[str, Any] = field(default_factory=dict, repr=False)
    check: bool = False


def run_playbook(run: PlaybookRun, see: Callable[[Mapping[str, Any]], None]) -> None:
    """Run to the end; hosts that fail are told by their events, not by an error.

    Args:
        see: is given each event as it comes.

    Raises:
        HostError: `prepare.not_installed`, `prepare.no_tmpfs`; `prepare.runner`: nothing was run: a bad
            inventory, a host that is not in it, or a fault of ours.
    """
    for module in ("ansible_runner", "ansible"):
        if importlib.util.find_spec(module) is None:
            raise not_installed(module.replace("_", "-"))
    with _folder() as folder:
        _write(folder, run)
        events = 0
        with (folder / "said").open("w+b") as said:
            with _started(run, folder, said.fileno()) as process:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                for line in process.stdout:
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if isinstance(event, dict):
                            events += event.get("event") in (
                                "runner_on_ok",
                                "runner_on_failed",
                                "runner_on_unreachable",
                            )
                            see(event)
                status = process.wait()
            if not events:
                said.seek(0)
                raise _nothing_ran(status, said.read().decode(errors="replace"), folder)


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder in memory for us alone."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm", "/run"]  # noqa: S108 - in a folder of its own
    for place in candidates:
        if place and os.access(place, os.W_OK) and filesystem_of(Path(place)) in _MEMORY:
            # ssh's control sockets lie elsewhere: their paths may have a hundred characters only.
            with tempfile.TemporaryDirectory(prefix="bulkhead-prepare-", dir=place) as made:
                yield Path(made)
            return
    raise HostError(
        "prepare.no_tmpfs", "there is no tmpfs to keep a join token off the disks",
        hint="mount a tmpfs on /dev/shm, or set XDG_RUNTIME_DIR to one",
    )  # fmt: skip


def _write(folder: Path, run: PlaybookRun) -> None:
    (folder / "env").mkdir()
    variables = dict(run.variables)
    if run.login.become_password is not None:
        variables["ansible_become_password"] = run.login.become_password
    (folder / "env" / "extravars").write_text(json.dumps(variables))
    if isinstance(run.targets.inventory, dict):
        # JSON is YAML, which ansible knows by the name's end.
        (folder / "hosts.yml").write_text(json.dumps(run.targets.inventory))


@contextmanager
def _started(run: PlaybookRun, folder: Path, said: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start ansible-runner; its whole process group is ended with the block."""
    inventory = run.targets.inventory
    argv = [sys.executable, "-m", "ansible_runner", "run", str(folder), "--json", "--omit-env-files"]
    argv += ["--playbook", run.name, "--project-dir", str(run.playbooks)]
    argv += ["--inventory", str(folder / "hosts.yml" if isinstance(inventory, dict) else inventory)]
    if run.targets.limit:
        argv += ["--limit", ",".join(run.targets.limit)]
    if run.check:
        argv += ["--cmdline", "--check"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=said,
        env=_environment(run, folder),
        cwd=run.playbooks,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)


def _environment(run: PlaybookRun, folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    own["PATH"] = f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}"
    own["ANSIBLE_CONFIG"] = str(run.playbooks / "ansible.cfg")
    own["ANSIBLE_HOME"] = str(folder / "ansible")
    own["ANSIBLE_LOCAL_TEMP"] = str(folder / "ansible" / "tmp")
    if run.login.user is not None:
        own["ANSIBLE_REMOTE_USER"] = run.login.user
    if run.login.key is not None:
        own["ANSIBLE_PRIVATE_KEY_FILE"] = str(run.login.key.resolve())
    # Nobody is there to be asked for a passphrase or about a key: ssh says no instead.
    extra = ["BatchMode=yes", f"StrictHostKeyChecking={'accept-new' if run.login.accept_new_key else 'yes'}"]
    if run.login.key is not None:
        # Of many keys in an agent, a server may refuse us before the right one's turn.
        extra.append("IdentitiesOnly=yes")
    own["ANSIBLE_SSH_EXTRA_ARGS"] = " ".join(f"-o {each}" for each in extra)
    return own


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what still runs of it; shared connections of ssh live on for two minutes, outside of the tree."""
    if process.poll() is None:
        # Ansible's workers have sessions of their own, so a signal to one group would not reach them.
        handles = [_handle(pid) for pid in _below(process.pid)]
        try:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            for handle in (each for each in handles if each is not None):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
            for handle in (each for each in handles if each is not None):
                os.close(handle)
    if process.stdout is not None:
        process.stdout.close()


def _below(pid: int) -> list[int]:
    """Return all processes below one, as they are now (`/proc/PID/task/TID/children`, proc(5))."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_below(child)]
    return found


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _nothing_ran(status: int, said: str, folder: Path) -> HostError:
    """Say why no task was run, with the last words of ansible."""
    texts = [said, *(path.read_text(errors="replace") for path in folder.glob("artifacts/*/std*"))]
    lines = [_COLOUR.sub("", line).strip() for text in texts for line in text.splitlines()]
    telling = [line for line in lines if "ERROR" in line or "WARNING" in line or "rror:" in line]
    last = "; ".join((telling or lines)[-_SHOWN_LINES:]) or f"status {status}"
    return HostError(
        "prepare.runner",
        f"nothing was run: {last}"[:600],
        hint="look at the inventory and the names of hosts",
    )
