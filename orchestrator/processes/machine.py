"""One controller and one agent on one machine, over the normal protocol: what `bulkhead serve` does.

The two are processes of their own and speak TLS with each other as anywhere else: this machine enrols once,
by a join token that goes from one to the other through pipes and stands in no argument, file or environment.
When one of them ends, that is to the other what it is anywhere, and VMs run on. When this process ends, in
whatever way, both do. Decides nothing about
instances.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.host import AgentSettings
from orchestrator.model.errors import HostError, InvalidInputError
from orchestrator.processes import lifeline
from orchestrator.processes.agent_link import certificates_of
from orchestrator.processes.control_settings import ControlFile
from orchestrator.processes.supervise import Supervisor

_PROGRAM = (sys.executable, "-m", "orchestrator")
#: Of what is free where volumes lie, so much is for tenants.
_DISK_SHARE = 0.8
_GIB = 1 << 30
Start = Callable[..., subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Machine:
    """What is to run.

    Args:
        controller, agent: settings of the two, read already: what is wrong is told before anything runs.
        controller_words, agent_words: options that make the children read the same.
        host_name: this machine's name as a host.
        disk_gib: what tenants' volumes may take of it; None is a share of what is free now.
        controller_user: whom the controller runs as; None is whoever runs this.
    """

    controller: ControlFile
    agent: AgentSettings
    controller_words: tuple[str, ...]
    agent_words: tuple[str, ...]
    host_name: str
    disk_gib: int | None
    controller_user: str | None
    simulated: bool


def serve(machine: Machine, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Run both until `ended` is set.

    Raises:
        InvalidInputError: `serve.ports`, `serve.user`.
        HostError: `serve.controller`: it did not begin to listen; `serve.enrol`.
    """
    if 0 in (machine.controller.public_port, machine.controller.agents_port):
        raise InvalidInputError(
            "serve.ports",
            "the agent must find its controller again after a restart",
            field="public_port, agents_port",
            hint="give both listeners fixed ports",
        )
    supervisor = Supervisor(say)
    with _lifeline() as held:
        try:
            _keep_both(machine, supervisor, held, ended, say)
            supervisor.run(ended)
        finally:
            supervisor.end()


def _keep_both(
    machine: Machine, supervisor: Supervisor, held: int, ended: threading.Event, say: Callable[[str], None]
) -> None:
    user, life = _prepared_user(machine), (lifeline.OPTION, str(held))
    as_controller = _starter(user, held)
    words = ("controller", "serve", *life, *machine.controller_words)
    running, url = _listening(as_controller, words)
    supervisor.keep("controller", words, as_controller, running)
    say(f"public API {url}")
    if ended.is_set():
        return
    if not certificates_of(machine.agent).enrolled:
        _enrol(machine, _starter(user), url)
    simulated = ("--simulated",) if machine.simulated else ()
    words = ("agent", "serve", *life, *simulated, *machine.agent_words)
    supervisor.keep("agent", words, _starter(None, held))
    say("an operator's token: bulkhead controller operator-token NAME")


@contextmanager
def _lifeline() -> Iterator[int]:
    """Hold one end of a pipe, and give the other to children: they end when this process does."""
    held, holding = os.pipe()
    try:
        yield held
    finally:
        os.close(holding)
        os.close(held)


def free_gib(path: Path) -> int:
    """What tenants may take of the file system that a folder, made or not, is on."""
    while not path.exists():
        path = path.parent
    return int(shutil.disk_usage(path).free * _DISK_SHARE) // _GIB


def _prepared_user(machine: Machine) -> pwd.struct_passwd | None:
    """Find whom the controller runs as, and give it its folder when that is not there yet."""
    if machine.controller_user is None:
        return None
    try:
        user = pwd.getpwnam(machine.controller_user)
    except KeyError as exc:
        raise InvalidInputError(
            "serve.user", f"there is no user {machine.controller_user}", field="--controller-user"
        ) from exc
    folder = machine.controller.state_dir
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700)
        os.chown(folder, user.pw_uid, user.pw_gid)
    return user


def _starter(user: pwd.struct_passwd | None, held: int | None = None) -> Start:
    """Return what starts one of our own commands, as that user, with one descriptor of ours."""
    kept = () if held is None else (held,)

    def start(
        words: Sequence[str], *, pass_fds: tuple[int, ...] = (), **more: Any
    ) -> subprocess.Popen[bytes]:
        more["pass_fds"] = (*pass_fds, *kept)
        if user is not None:
            more |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return subprocess.Popen([*_PROGRAM, *words], **{"stdin": subprocess.DEVNULL, **more})

    return start


def _listening(start: Start, words: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], str]:
    """Start the controller and wait until it listens; it says so through a pipe, or says itself why not."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ready:
        try:
            running = start([*words, "--ready-fd", str(writing)], pass_fds=(writing,))
        finally:
            os.close(writing)
        told = ready.read()
    if not told:
        status = running.wait()
        raise HostError("serve.controller", f"the controller ended with {status} before it listened")
    return running, str(json.loads(told)["public_url"])


def _enrol(machine: Machine, as_controller: Start, url: str) -> None:
    disk_gib = free_gib(machine.agent.state_dir) if machine.disk_gib is None else machine.disk_gib
    words = ["controller", "host-token", machine.host_name, "--disk-gib", str(disk_gib)]
    making = as_controller([*words, *machine.controller_words], stdout=subprocess.PIPE)
    token, _ = making.communicate()
    if making.returncode:
        raise HostError("serve.enrol", f"no join token could be made for {machine.host_name}")
    words = ["agent", "enrol", "--controller", url, "--token-file", "-", *machine.agent_words]
    enrolling = _starter(None)(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    enrolling.communicate(token)
    if enrolling.returncode:
        raise HostError("serve.enrol", f"{machine.host_name} could not become a host of {url}")
