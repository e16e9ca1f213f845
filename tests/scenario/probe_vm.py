"""Boots the probe image under plain QEMU, without Bulkhead, and talks to it.

The machine is emulated, so it runs anywhere; nothing here is for production. Called by the scenario tests.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycdlib

PORT_NAME = "org.bulkhead.guest.0"


@dataclass(frozen=True)
class Ran:
    """What a script in the guest did."""

    exit_code: int
    output: str
    truncated: bool
    timed_out: bool


def write_seed(
    path: Path, meta_data: str, user_data: str, network_config: str, label: str = "cidata"
) -> None:
    """Write a NoCloud seed as an ISO9660 image with Rock Ridge names."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident=label)
    names = {"meta-data": ("METADATA", meta_data), "user-data": ("USERDATA", user_data)}
    names["network-config"] = ("NETCONF", network_config)
    for name, (short, text) in names.items():
        source = path.with_name(f"{path.name}.{name}")
        source.write_text(text)
        iso.add_file(str(source), f"/{short}.;1", rr_name=name)
    iso.write(str(path))
    iso.close()


class Console:
    """The host's end of the guest's virtio-serial port."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect; the socket exists as soon as QEMU runs."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        self._rest = b""
        self._last_id = 0

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def read_line(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            TimeoutError: the guest says nothing.
            EOFError: QEMU is gone.
        """
        while b"\n" not in self._rest:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise EOFError("the guest's machine is gone")
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def ask(self, op: str, **members: object) -> dict[str, Any]:
        """Send one request and return its answer; pass over answers to an earlier connection."""
        self._last_id += 1
        self.send_raw(b"\n" + json.dumps({"id": self._last_id, "op": op, **members}).encode() + b"\n")
        while True:
            found = self.read_line()
            if found.get("id") == self._last_id:
                return found

    def report(self) -> dict[str, Any]:
        """Return the guest's report."""
        found = self.ask("report")
        assert found["ok"], found
        report = found["report"]
        assert isinstance(report, dict)
        return report

    def run(self, script: str, timeout_s: int = 30) -> Ran:
        """Run a script in the guest."""
        found = self.ask("run", script=script, timeout_s=timeout_s)
        assert found["ok"], found
        output = base64.b64decode(found["output_b64"]).decode("utf-8", "replace")
        return Ran(int(found["exit_code"]), output, bool(found["truncated"]), bool(found["timed_out"]))


class ProbeVM:
    """One probe guest in a QEMU process of its own."""

    def __init__(
        self, folder: Path, image: Path, extra: Sequence[str] = (), machine: Sequence[str] = ()
    ) -> None:
        """Start it on a private copy of the image, lengthened to 64 MiB as a tenant's volume would be.

        Args:
            folder: for disk, sockets and log; short, since socket paths hold 107 bytes at most. A disk that
                an earlier machine has left there is booted as it is.
            extra: further QEMU arguments, devices for instance.
            machine: replaces the default processors and memory.
        """
        self.folder = folder
        self.disk = folder / "disk.raw"
        if not self.disk.exists():
            shutil.copyfile(image, self.disk)
            with self.disk.open("r+b") as out:
                out.truncate(64 * 1024 * 1024)
        for stale in ("port", "qmp"):
            (folder / stale).unlink(missing_ok=True)
        self._log = folder / "console.log"
        arguments = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += ["-machine", "q35,accel=tcg", "-cpu", "max", *(machine or ("-m", "256", "-smp", "2"))]
        arguments += ["-serial", f"file:{self._log}"]
        arguments += ["-drive", f"file={self.disk},format=raw,if=none,id=boot,cache=unsafe"]
        arguments += ["-device", "virtio-blk-pci,drive=boot,bootindex=1,serial=boot-0001"]
        arguments += ["-chardev", f"socket,id=port,path={folder}/port,server=on,wait=off"]
        arguments += [
            "-device",
            "virtio-serial-pci",
            "-device",
            f"virtserialport,chardev=port,name={PORT_NAME}",
        ]
        arguments += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off", *extra]
        self._stderr = (folder / "qemu.log").open("wb")
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=self._stderr, stderr=self._stderr
        )

    def connect(self, timeout_s: float = 120) -> Console:
        """Connect to the guest's port. Requests wait until the guest is up."""
        deadline = time.monotonic() + 10
        while not self.port.exists() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._process.poll() is not None:
            raise AssertionError("QEMU did not start: " + (self.folder / "qemu.log").read_text())
        return Console(self.port, timeout_s)

    @property
    def port(self) -> Path:
        """The socket of the guest's port; one connection at a time."""
        return self.folder / "port"

    def command(self, command: str, **arguments: object) -> None:
        """Have QEMU do something to the machine."""
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(str(self.folder / "qmp"))
            stream = qmp.makefile("rwb")
            stream.readline()
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                # Events come in between.
                while "event" in (found := json.loads(stream.readline())):
                    pass
                assert "return" in found, found

    def press_power_button(self) -> None:
        """Do what `virsh shutdown` does without a guest agent."""
        self.command("system_powerdown")

    def wait_for_end(self, timeout_s: float) -> int:
        """Wait until the machine has turned itself off; return QEMU's exit status."""
        return self._process.wait(timeout_s)

    def console_text(self) -> str:
        """Return what the guest printed on its serial console."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """End QEMU if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stderr.close()
