"""Starts, reaches and ends lab hosts; `LabHost` is what tests hold.

State lies in `.lab/` of the checkout (BULKHEAD_LAB_DIR overrides it), one folder per host. A command that
does not come back is judged by `watch`: if the lab host itself died, `LabDiedError` says so and
`restart_once` may bring it back, at most once for each purpose; `report.json` keeps the record. Everything
listens on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from images.labhost import build, machine, qemu, watch

BOOT_LIMIT_S = 420
STALL_LIMIT_S = 90
STOP_LIMIT_S = 10  # for each of: asked, told, killed
CONNECT_FAILED = 255  # ssh's own exit status
Say = Callable[[str], None]


class LabError(Exception):
    """The harness could not do what was asked; not a verdict on the code under test."""


class LabDiedError(LabError):
    """The lab host itself died or hangs: emulation's failure, not the test's."""


class CommandError(LabError):
    """A command in the lab host ended with a status other than 0."""


#: What a command of the harness tells in one line; anything else is a defect and shows its traceback.
TOLD = (LabError, RuntimeError, PermissionError)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in the lab host gave back."""

    rc: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Running:
    """The record of a started QEMU."""

    pid: int
    started: str
    ssh_port: int
    shape: str
    accelerator: str
    qemu_version: str
    argv: tuple[str, ...]

    @property
    def wired(self) -> bool:
        """Whether it has the wire to a second lab host."""
        return any(word.startswith("socket,id=uplink,") for word in self.argv)

    @property
    def kernel(self) -> Path:
        """The kernel that was booted."""
        return Path(self.argv[self.argv.index("-kernel") + 1])


def lab_folder() -> Path:
    """Where the lab's state lies."""
    chosen = os.environ.get("BULKHEAD_LAB_DIR")
    return Path(chosen).resolve() if chosen else build.REPOSITORY / ".lab"


class LabHost:
    """One lab host, running or not."""

    def __init__(self, number: int = 1, folder: Path | None = None) -> None:
        self.number = number
        self.lab = folder or lab_folder()
        self.folder = self.lab / f"host{number}"

    # -- starting and ending

    def start(self, spec: machine.Spec, chosen: qemu.Qemu) -> None:
        """Start QEMU in a session of its own, so that it outlives this process; returns at once."""
        argv = (*chosen.command, *machine.arguments(spec))
        self._spawn(Running(0, "", spec.ssh_port, spec.shape.name, spec.accelerator, chosen.version,
                            argv))  # fmt: skip

    def _spawn(self, wanted: Running) -> None:
        self._close_master()  # one that outlived a dead lab host
        for name in ("console.log", "qmp.sock", "pid", "master"):
            (self.folder / name).unlink(missing_ok=True)
        with (self.folder / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                wanted.argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        started = watch.process_start(process.pid) or "gone"
        running = Running(**{**asdict(wanted), "pid": process.pid, "started": started})
        (self.folder / "running.json").write_text(json.dumps(asdict(running), indent=1))

    def wait_booted(self, limit_s: float = BOOT_LIMIT_S) -> float:
        """Wait until ssh answers and the host's services are up; return the seconds it took.

        Raises:
            LabDiedError: QEMU or the kernel died, it stalls for long, or the limit passed.
        """
        begun = time.monotonic()
        stalled_at: float | None = None
        while time.monotonic() - begun < limit_s:
            reason = self.died_reason(quick=True)
            if reason is not None:
                raise LabDiedError(reason)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Waits inside for the last service; "degraded" also ends the wait, and `status` names what
                # failed.
                if self._ssh("systemctl is-system-running --wait", 120, None).rc != CONNECT_FAILED:
                    return time.monotonic() - begun
            stall = watch.console_stall(watch.read_tail(self.folder / "console.log"))
            if stall is not None:
                stalled_at = stalled_at or time.monotonic()
                if time.monotonic() - stalled_at >= STALL_LIMIT_S:
                    raise LabDiedError(stall)
            time.sleep(1)
        console = self.folder / "console.log"
        raise LabDiedError(f"the lab host did not answer within {limit_s:.0f} s; see {console}")

    def stop(self) -> None:
        """End this host: QEMU is asked, then told, then killed; its disk and sockets go, its logs stay."""
        self._close_master()
        running = self.running()
        if running is not None:
            for action in (self._quit, lambda: os.kill(running.pid, signal.SIGTERM),
                           lambda: os.kill(running.pid, signal.SIGKILL)):  # fmt: skip
                try:
                    action()
                except (OSError, LabError):
                    continue
                if _wait_for(lambda: not watch.is_running(running.pid, running.started), STOP_LIMIT_S):
                    break
        for name in (
            "overlay.qcow2",
            "nvme.img",
            "qmp.sock",
            "pid",
            "master",
            "running.json",
            "forwards.json",
        ):
            (self.folder / name).unlink(missing_ok=True)

    def reboot(self) -> float:
        """Reboot the lab host's kernel and wait for it; return the seconds until ssh answered again.

        The emulator stays; what the lab host keeps only in memory is gone.
        """
        before = self.ssh("cat /proc/sys/kernel/random/boot_id", 60).stdout
        begun = time.monotonic()
        with contextlib.suppress(CommandError, subprocess.TimeoutExpired):
            self._ssh("systemctl reboot", 60, None)
        self._close_master()
        while time.monotonic() - begun < BOOT_LIMIT_S:
            self.wait_booted(BOOT_LIMIT_S)
            if self.ssh("cat /proc/sys/kernel/random/boot_id", 60).stdout != before:
                return time.monotonic() - begun
            self._close_master()
            time.sleep(2)
        raise LabDiedError("the lab host did not reboot")

    def restart_once(self, purpose: str = "") -> None:
        """Start a dead lab host again on the disk it had, at most once for a purpose, and record why.

        Ports that it reached on this machine before are forwarded again.

        Args:
            purpose: what it was used for: a test; empty: the lab as such.

        Raises:
            LabDiedError: it was started again for this before, or does not come up.
        """
        reason = self.died_reason() or "asked for"
        report = self.report()
        deaths = report["deaths"] if isinstance(report["deaths"], list) else []
        if any((death["host"], death.get("purpose", "")) == (self.number, purpose) for death in deaths):
            raise LabDiedError(f"the lab host died a second time: {reason}")
        deaths.append({"host": self.number, "at": int(time.time()), "purpose": purpose, "reason": reason})
        (self.lab / "report.json").write_text(json.dumps({**report, "deaths": deaths}, indent=1))
        recorded = Running(**json.loads((self.folder / "running.json").read_text()))
        if watch.is_running(recorded.pid, recorded.started):
            os.kill(recorded.pid, signal.SIGKILL)
            _wait_for(lambda: not watch.is_running(recorded.pid, recorded.started), 20)
        for name in ("console.log", "qemu.log"):
            # What it said last is all that there is to find out why.
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).rename(self.folder / f"died-{name}")
        self._spawn(recorded)
        self.wait_booted()
        for port in self._forwards():
            self.forward_back(port)

    def report(self) -> dict[str, object]:
        """Return what is recorded of this lab: boots and the lab hosts' own deaths."""
        path = self.lab / "report.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return {"deaths": [], **found}

    # -- looking

    def running(self) -> Running | None:
        """Return the record of the QEMU that runs, or None."""
        path = self.folder / "running.json"
        if not path.exists():
            return None
        record = Running(**json.loads(path.read_text()))
        return record if watch.is_running(record.pid, record.started) else None

    def alive(self) -> bool:
        """Tell whether QEMU runs, its kernel has not died and ssh answers."""
        return self.died_reason() is None

    def died_reason(self, *, quick: bool = False) -> str | None:
        """Return why the lab host counts as dead, in one line, or None; `quick` does not try ssh."""
        if self.running() is None:
            return watch.emulator_death(watch.read_tail(self.folder / "qemu.log"))
        console = watch.read_tail(self.folder / "console.log")
        death = watch.console_death(console)
        if death is not None or quick:
            return death
        try:
            answered = self._ssh("true", STALL_LIMIT_S, None).rc == 0
        except subprocess.TimeoutExpired:
            answered = False
        if answered:
            return None
        return watch.console_stall(console) or f"the lab host does not answer ssh within {STALL_LIMIT_S} s"

    def last_words(self, lines: int = 40) -> str:
        """Return the console's end and, of a QEMU that runs, each CPU's place and each thread's time."""
        found = watch.read_tail(self.folder / "console.log").splitlines()[-lines:]
        if (running := self.running()) is not None:
            with contextlib.suppress(LabError):
                answer = str(self.qmp("human-monitor-command", **{"command-line": "info registers -a"}))
                found += [line for line in answer.splitlines() if line.startswith(("CPU#", "RIP="))]
            found += watch.thread_times(running.pid)
        return "\n".join(found)

    # -- using

    def ssh(
        self, command: str, timeout_s: float = 120, check: bool = True, input: bytes | None = None
    ) -> Result:
        """Run a shell command as root in the lab host.

        Raises:
            LabDiedError: the lab host itself is dead.
            CommandError: the command failed and `check` is set, or it took longer than `timeout_s`.
        """
        try:
            result = self._ssh(command, timeout_s, input)
        except subprocess.TimeoutExpired as exc:
            self.raise_if_dead()
            raise CommandError(f"took longer than {timeout_s:.0f} s in the lab host: {command}") from exc
        if result.rc == CONNECT_FAILED:
            self.raise_if_dead()
        if check and result.rc != 0:
            said = (result.stderr.strip() or result.stdout.strip())[-2000:]
            raise CommandError(f"ended with {result.rc} in the lab host: {command}\n{said}")
        return result

    def sh(self, command: str, timeout_s: float = 120) -> str:
        """Run a shell command as root in the lab host and return what it printed.

        Raises:
            LabDiedError, CommandError: as `ssh`.
        """
        return self.ssh(command, timeout_s).stdout.strip()

    def put(self, local: Path, remote: str) -> None:
        """Copy one file into the lab host, with its mode."""
        mode = local.stat().st_mode & 0o777
        target = shlex.quote(remote)
        script = f"mkdir -p $(dirname {target}) && cat >{target}.part && chmod {mode:o} {target}.part"
        self.ssh(f"{script} && mv {target}.part {target}", 300, input=local.read_bytes())

    def forward_back(self, port: int) -> None:
        """Let the lab host reach this machine's 127.0.0.1:`port` under the same address; safe to repeat.

        It lasts as long as the connection: a reboot ends it, `restart_once` makes it anew.

        Raises:
            LabError: the lab host's port is taken.
        """
        self.ssh("true")  # the connection that carries it
        forward = f"{machine.LOOPBACK}:{port}:{machine.LOOPBACK}:{port}"
        for verb in ("cancel", "forward"):
            done = subprocess.run(
                [*self.ssh_argv(), "-O", verb, "-R", forward], cwd=self.folder, capture_output=True,
                timeout=60, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"port {port} cannot be forwarded: {done.stderr.decode(errors='replace').strip()}")
        (self.folder / "forwards.json").write_text(json.dumps(sorted({*self._forwards(), port})))

    def _forwards(self) -> list[int]:
        path = self.folder / "forwards.json"
        found: list[int] = json.loads(path.read_text()) if path.exists() else []
        return found

    def raise_if_dead(self) -> None:
        """Say so if the lab host itself died.

        Raises:
            LabDiedError: with the reason.
        """
        reason = self.died_reason()
        if reason is not None:
            raise LabDiedError(reason)

    def ssh_argv(self) -> list[str]:
        """Return ssh's argv up to the command; run it in `self.folder`, where the connection's socket is."""
        running = self.running()
        port = running.ssh_port if running else 0
        options = {
            "BatchMode": "yes", "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR", "ConnectTimeout": "20",
            "ServerAliveInterval": "30", "ServerAliveCountMax": "6",
            "ControlMaster": "auto", "ControlPersist": "yes", "ControlPath": "master",
        }  # fmt: skip
        argv = ["ssh", "-F", "/dev/null", "-i", str(self.lab / "id_ed25519"), "-p", str(port)]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        return [*argv, f"root@{machine.LOOPBACK}"]

    def _ssh(self, command: str, timeout_s: float, data: bytes | None) -> Result:
        done = subprocess.run(
            [*self.ssh_argv(), command], cwd=self.folder, input=data if data is not None else b"",
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        stdout, stderr = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        return Result(done.returncode, stdout, stderr)

    def _close_master(self) -> None:
        if (self.folder / "master").exists():
            argv = ["ssh", "-F", "/dev/null", "-o", "ControlPath=master", "-O", "exit", "lab"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(argv, cwd=self.folder, capture_output=True, timeout=10, check=False)
            (self.folder / "master").unlink(missing_ok=True)

    def _quit(self) -> None:
        self.qmp("quit")

    def qmp(self, command: str, **arguments: object) -> object:
        """Give QEMU one QMP command and return its answer.

        Raises:
            LabError: QEMU refused it or did not answer.
        """
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(20)
                # A socket's path is limited to 107 bytes; through the folder's descriptor it is always short.
                link.connect(f"/proc/self/fd/{folder}/qmp.sock")
                stream = link.makefile("rwb")
                stream.readline()
                wanted = {"execute": command, "arguments": arguments}
                for message in ({"execute": "qmp_capabilities"}, wanted):
                    stream.write(json.dumps(message).encode() + b"\n")
                    stream.flush()
                    answer = next(found for found in map(json.loads, stream) if "event" not in found)
                    if "error" in answer:
                        raise LabError(f"QEMU refused {command}: {answer['error']}")
                return answer["return"]
        except (OSError, StopIteration) as exc:
            raise LabError(f"QEMU did not answer {command}") from exc
        finally:
            os.close(folder)


def _wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((machine.LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
