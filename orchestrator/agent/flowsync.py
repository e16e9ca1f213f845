"""Keeps the switch's ports and flows equal to what may speak: open ports of running instances, no more.

A port opens in steps that all fail closed: what it may speak as into the journal, its tag and mark into the
database, then the flows in one bundle. It closes in the reverse order. After a restart of the switch the
flows are gone, which is closed; `sync` brings them back. A running VM that an assignment no longer names
keeps its flows. Called by the reconciler.
"""

from __future__ import annotations

import dataclasses

from orchestrator.agent.effects import Effects
from orchestrator.agent.journal import Journal, PortRecord
from orchestrator.agent.ports import Switch
from orchestrator.isolation.flows import FlowPort, FlowProgram, compile_flows
from orchestrator.isolation.judge_things import judge_flows
from orchestrator.model.assignment import Instance
from orchestrator.model.evidence import Verdict
from orchestrator.model.observed import ObservedPort, ObservedSwitch


class FlowSync:
    """Opens and closes ports of one host's switch."""

    def __init__(self, switch: Switch, journal: Journal, effects: Effects) -> None:
        self._switch = switch
        self._journal = journal
        self._effects = effects

    def open(self, instance: Instance) -> None:
        """Open an instance's ports, then let the flows follow."""
        records = {
            port.id: PortRecord(instance.id, port.vlan, port.mac, tuple(a.address for a in port.addresses))
            for port in instance.ports
        }
        self._journal.update(lambda state: dataclasses.replace(state, ports={**state.ports, **records}))
        seen = {port.port: port for port in self._switch.observe().ports}
        for port in instance.ports:
            if port.id not in seen or not _is_open(seen[port.id], records[port.id]):
                self._effects.do(
                    instance.id,
                    "open_port",
                    lambda p=port: self._switch.open_port(p.id, p.vlan),  # type: ignore[misc]
                )
        self.sync(instance.id)

    def close(self, instance_id: str) -> None:
        """Take an instance's flows away, then put its ports on the dead VLAN."""
        mine = [port for port in self._switch.observe().ports if port.instance == instance_id]
        if not mine:
            return
        self.sync(instance_id, without=instance_id)
        for port in mine:
            if port.open or port.vlan is not None:
                self._effects.do(
                    instance_id,
                    "close_port",
                    lambda p=port: self._switch.close_port(p.port),  # type: ignore[misc]
                )

    def remove(self, instance_id: str) -> None:
        """Remove what a stopped instance left on the switch (libvirt takes its taps away); forget it."""
        for port in self._switch.observe().ports:
            if port.instance == instance_id:
                self._effects.do(
                    instance_id,
                    "remove_port",
                    lambda p=port: self._switch.remove_port(p.port),  # type: ignore[misc]
                )
        self._journal.update(
            lambda state: dataclasses.replace(
                state, ports={k: v for k, v in state.ports.items() if v.instance != instance_id}
            )
        )

    def sync(self, subject: str, *, without: str | None = None) -> FlowProgram:
        """Make the flows equal to the open ports, if they are not."""
        program = self.program(self._switch.observe(), without=without)
        if self._switch.drift(program):
            self._effects.do(subject, "replace_flows", lambda: self._switch.replace_flows(program))
        return program

    def verdict(self, program: FlowProgram, bridge: str) -> Verdict:
        """Read the switch's flows again and hold them against the program."""
        return judge_flows(bridge, len(program.flows), self._switch.drift(program))

    def program(self, switch: ObservedSwitch, *, without: str | None = None) -> FlowProgram:
        """Compile what may speak now: marked open, tagged as recorded, still of the same instance."""
        speaking: list[FlowPort] = []
        for seen in switch.ports:
            record = self._journal.state.ports.get(seen.port)
            if record is None or seen.ofport is None or seen.instance == without:
                continue
            if seen.instance != record.instance or not _is_open(seen, record):
                continue
            speaking.append(FlowPort(seen.port, seen.ofport, record.vlan, record.mac, record.addresses))
        return compile_flows(speaking, uplink_ofport=switch.uplink_ofport)


def _is_open(seen: ObservedPort, record: PortRecord) -> bool:
    return seen.open and seen.vlan_mode == "access" and seen.vlan == record.vlan and not seen.trunks
