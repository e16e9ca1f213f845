"""Loads a flow program into a bridge and compares them, through `ovs-ofctl` and the bridge's own socket.

Never makes flows: `orchestrator.isolation.flows` does. Never changes part of a program: one bundle, all or
nothing. Called by `switch`.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from orchestrator.isolation.flows import FlowProgram
from orchestrator.model.errors import HostError

#: ovs-ofctl's exit status when the two sides of diff-flows differ.
_DIFFERENT = 2
_HINT = "systemctl status openvswitch-switch"
#: What ovs-ofctl says when a switch hung up before it was asked anything. Busy ones do: seen in the lab, and
#: told of real hosts (ovn-kubernetes issue 3513).
_HUNG_UP = "failed to connect to socket"
_TRIES, _PAUSE_S = 5, 0.5


class FlowTable:
    """The flows of one bridge.

    Args:
        bridge: its name.
        rundir: where ovs-vswitchd puts `BRIDGE.mgmt`.
        timeout_s: how long one call may take.
    """

    def __init__(self, bridge: str, rundir: str = "/run/openvswitch", *, timeout_s: float = 20.0) -> None:
        self._socket = Path(rundir) / f"{bridge}.mgmt"
        self._timeout_s = timeout_s

    def replace(self, program: FlowProgram) -> None:
        """Make the bridge's flows equal to the program; a packet sees the old ones or the new ones.

        Raises:
            HostError: `network.switch_down`, `network.flows_refused` (nothing changed).
        """
        done = self._run(["--bundle", "replace-flows", self._target, "-"], program)
        if done.returncode != 0:
            raise HostError("network.flows_refused", f"the switch refused the flows: {_last_words(done)}")

    def difference(self, program: FlowProgram) -> tuple[str, ...]:
        """What the bridge has (`-`) and the program does not, and the reverse (`+`), one flow a line.

        Raises:
            HostError: `network.switch_down`, `network.flows_unread`.
        """
        # diff-flows takes a file for its second side and knows no `-`.
        done = self._run(["diff-flows", self._target, "/dev/stdin"], program)
        if done.returncode not in (0, _DIFFERENT):
            raise HostError("network.flows_unread", f"the switch's flows cannot be read: {_last_words(done)}")
        return tuple(line for line in done.stdout.splitlines() if line)

    @property
    def _target(self) -> str:
        return f"unix:{self._socket}"

    def _run(self, arguments: list[str], program: FlowProgram) -> subprocess.CompletedProcess[str]:
        """Ask, and again when the switch hung up before it was asked."""
        ends_s = time.monotonic() + self._timeout_s
        for _ in range(_TRIES - 1):
            done = self._once(arguments, program)
            if _HUNG_UP not in done.stderr or time.monotonic() + _PAUSE_S > ends_s:
                return done
            time.sleep(_PAUSE_S)
        return self._once(arguments, program)

    def _once(self, arguments: list[str], program: FlowProgram) -> subprocess.CompletedProcess[str]:
        self._knock()
        command = ["ovs-ofctl", "-O", "OpenFlow14", *arguments]
        try:
            return subprocess.run(
                command,
                input=program.text(),
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise HostError(
                "network.switch_down",
                f"ovs-vswitchd did not answer within {self._timeout_s:g} s",
                hint=_HINT,
            ) from exc
        except OSError as exc:
            raise HostError("network.switch_down", f"ovs-ofctl does not start: {exc}") from exc

    def _knock(self) -> None:
        """See that somebody listens: a switch that was killed leaves its socket behind."""
        try:
            with socket.socket(socket.AF_UNIX) as knock:
                knock.settimeout(self._timeout_s)
                knock.connect(str(self._socket))
        except OSError as exc:
            raise HostError(
                "network.switch_down", f"ovs-vswitchd does not listen on {self._socket}: {exc}", hint=_HINT
            ) from exc


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or f"exit status {done.returncode}"
