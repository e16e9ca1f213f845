"""What the showcase, the lab tests and the bench do with a lab host: bring the product, give orders.

Keys: each volume's passphrase is derived from one lab secret that lies, readable by its owner alone, in
`.lab` on the machine that plays the controller; the lab host itself only ever gets keys on a descriptor.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.labhost import commands, lab
from images.labhost.preloaded import Preloaded
from images.labhost.tenants import keys_for
from images.probe.image import ProbeImage, ensure_image
from orchestrator.model.assignment import Assignment

#: Lab time is emulated; a whole apply with two starts takes a minute or two.
APPLY_LIMIT_S = 540
IMAGES = "/var/lib/bulkhead/images"
JOURNAL = "/var/lib/bulkhead/agent/journal.json"
#: In the lab host, on tmpfs: what this harness puts there.
FOLDER = "/run/bulkhead-lab"
ASSIGNMENT = f"{FOLDER}/assignment.json"
#: What a shell says of SIGKILL.
KILLED = 137
Say = Callable[[str], None]


class ApplyError(Exception):
    """The agent refused the assignment: its exit status and its own words."""

    def __init__(self, rc: int, words: str) -> None:
        super().__init__(f"bulkhead agent apply ended with {rc}: {words}")
        self.rc = rc
        self.words = words


@dataclass(frozen=True)
class LabSession:
    """A lab host that runs this working tree's product."""

    host: lab.LabHost
    image: ProbeImage
    #: The lab host got other code than it had.
    pushed: bool
    preloaded: Preloaded

    def probe(self) -> dict[str, Any]:
        """Return what `bulkhead agent probe` says about the lab host."""
        found: dict[str, Any] = json.loads(self._agent("probe", timeout_s=120).stdout)
        return found

    def apply(self, assignment: Assignment, *, timeout_s: float = APPLY_LIMIT_S) -> dict[str, Any]:
        """Apply an assignment; return the report, also when parts of it failed.

        Raises:
            ApplyError: the agent refused it or died.
        """
        return self._reported("apply", assignment, timeout_s, "--keys-fd", "0")

    def verify(self, assignment: Assignment) -> dict[str, Any]:
        """Hold the lab host against an assignment without changing it; return the report."""
        return self._reported("verify", assignment, 180)

    def _reported(self, verb: str, assignment: Assignment, timeout_s: float, *words: str) -> dict[str, Any]:
        keys = self._hand_over(assignment)
        done = self._agent(verb, ASSIGNMENT, *words, "-o", "json", timeout_s=timeout_s, stdin=keys)
        if done.rc not in (0, 8) or not done.stdout.startswith("{"):
            raise ApplyError(done.rc, done.stderr.strip()[-2000:])
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def apply_and_kill(self, assignment: Assignment, *, after_steps: int) -> tuple[bool, list[str]]:
        """Start to apply an assignment and SIGKILL the agent once it has done so many steps.

        Returns:
            Whether the kill came before the agent was done, and the steps it had done, as it tells them.
        """
        keys = self._hand_over(assignment)
        done = self._agent(
            "apply", ASSIGNMENT, "--keys-fd", "0", "-o", "json", timeout_s=APPLY_LIMIT_S, stdin=keys,
            kill_after=after_steps,
        )  # fmt: skip
        return done.rc == KILLED, done.stderr.splitlines()

    def _agent(
        self, *words: str, timeout_s: float, stdin: bytes = b"", kill_after: int | None = None
    ) -> lab.Result:
        return self.preloaded.run("agent", *words, timeout_s=timeout_s, stdin=stdin, kill_after=kill_after)

    def _hand_over(self, assignment: Assignment) -> bytes:
        """Put the assignment where the lab host reads it; return its keys, which go by descriptor."""
        text = assignment.model_dump_json().encode()
        self.host.ssh(f"mkdir -p {FOLDER} && cat >{ASSIGNMENT}", 60, input=text)
        return json.dumps(keys_for(assignment.instances, lab_secret(self.host.lab))).encode()

    def ask(self, instance: str, request: dict[str, Any], timeout_s: float = 180) -> dict[str, Any]:
        """Ask a guest over its channel.

        Raises:
            CommandError: no answer, or not in time.
        """
        words = ("ask", instance, json.dumps(request), "--timeout-s", str(timeout_s))
        done = self._agent(*words, timeout_s=timeout_s + 60)
        if done.rc != 0:
            raise lab.CommandError(f"ended with {done.rc}: bulkhead agent ask {instance}\n{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def followed(self) -> int:
        """Return the revision that the lab host's agent follows; 0 before its first."""
        text = self.host.ssh(f"cat {JOURNAL} 2>/dev/null || echo '{{}}'").stdout
        return int(json.loads(text).get("revision", 0))

    def where(self) -> str:
        """Say where the lab host is, for people."""
        running = self.host.running()
        return f"pid {running.pid}, ssh on 127.0.0.1:{running.ssh_port}" if running else "not running"


def open_session(say: Say, *, shape: str = "everyday", number: int = 1) -> LabSession:
    """Boot a lab host if need be, bring this working tree and the probe image to it."""
    image = ensure_image()
    (host,) = commands.up(say, shape=shape, numbers=(number,), probe_image=image.path)
    pushed = commands.push(host)
    _import_image(host, image)
    return LabSession(host, image, pushed, Preloaded(host))


def _import_image(host: lab.LabHost, image: ProbeImage) -> None:
    """Put the probe image into the agent's image cache under its digest.

    It comes from the disk that carries it, which is quick; over ssh where the lab host was booted without
    that disk, or with an older one.
    """
    final = f"{IMAGES}/{image.digest.replace(':', '-')}.raw"
    disk, new, size = "/dev/disk/by-id/virtio-probe", f"{final}.new", image.size_bytes
    check = f"echo '{image.digest.removeprefix('sha256:')}  {new}' | sha256sum -c --quiet 2>/dev/null"
    from_disk = f"test -e {disk} && head -c {size} {disk} >{new} && {check} && mv {new} {final}"
    if host.ssh(f"mkdir -p {IMAGES}; test -e {final} || {{ {from_disk}; }}", 180, check=False).rc != 0:
        host.put(image.path, new)
        host.ssh(f"{check} && mv {new} {final}", 180)


def lab_secret(folder: Path) -> bytes:
    """Return the lab's secret; made once."""
    path = folder / "secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
