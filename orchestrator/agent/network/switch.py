"""Our own Open vSwitch bridge, as `ports.Switch` wants it: secure at once, its ports closed until opened.

Decides whether a bridge, an uplink or an interface of a given name is ours; what is not is refused, never
repaired. A closed port sits in the dead VLAN as a trunk of only that (an access port's untagged frames
would pass); what may speak is said by the flows alone, which `FlowSync` compiles. Called by the reconciler.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from orchestrator.agent.network.openflow import FlowTable
from orchestrator.agent.network.ovsdb import Database
from orchestrator.isolation.flows import MAX_OFPORT, FlowProgram
from orchestrator.model.errors import ConflictError, HostError, NotFoundError
from orchestrator.model.naming import tap_name
from orchestrator.model.observed import ObservedPort, ObservedSwitch

#: 802.1Q reserves 4095: no frame can carry it, so a trunk of it carries nothing.
DEAD_VLAN = 4095

_BRIDGE_MARK = "bulkhead-bridge"
_UPLINK_MARK = "bulkhead-uplink"
_PORT, _INSTANCE, _DEPLOYMENT, _OPEN = (
    "bulkhead-port",
    "bulkhead-instance",
    "bulkhead-deployment",
    "bulkhead-open",
)
_SETTINGS: dict[str, Any] = {
    "fail_mode": "secure",
    "protocols": ["OpenFlow13", "OpenFlow14"],
    "mcast_snooping_enable": False,
    "stp_enable": False,
    "rstp_enable": False,
    # Nobody else steers the bridge or listens on it.
    "controller": [],
    "mirrors": [],
    "netflow": [],
    "sflow": [],
    "ipfix": [],
}


class OvsSwitch:
    """The bridge of one host.

    Args:
        bridge: its name; nobody else may have one of that name.
        uplink: the host's interface to the fabric, joined to the bridge; None keeps tenants on this host.
        database: ovsdb-server's socket.
        rundir: where ovs-vswitchd puts the bridge's socket.
        datapath_type: `system` is the kernel's; tests use `dummy`.
        uplink_type: Open vSwitch's type of the uplink's interface; empty for a kernel interface.
        timeout_s: how long one conversation with the database may take.
    """

    def __init__(
        self,
        bridge: str = "br-bulkhead",
        uplink: str | None = None,
        *,
        database: str = "/run/openvswitch/db.sock",
        rundir: str = "/run/openvswitch",
        datapath_type: str = "system",
        uplink_type: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        self._bridge = bridge
        self._uplink = uplink
        self._database = Database(database, timeout_s=timeout_s)
        self._flows = FlowTable(bridge, rundir)
        self._datapath_type = datapath_type
        self._uplink_type = uplink_type

    def kept(self) -> AbstractContextManager[None]:
        """Let this thread's calls within share one connection to the database."""
        return self._database.kept()

    def ensure_bridge(self) -> None:
        """Make the bridge and join the uplink, or repair what strays if they are ours.

        One transaction: there is no moment in which the bridge forwards by itself.

        Raises:
            ConflictError: `network.bridge_foreign`, `network.uplink_foreign`: not ours, so not touched.
            HostError: the database or the switch does not answer.
        """
        if not self._database.read(self._is_as_wanted):
            self._database.change(self._make_bridge, applied=True)

    def observe(self) -> ObservedSwitch:
        """Read bridge and ports from the database, as they are now."""
        return self._database.read(self._observe)

    def label_port(self, port: str, *, instance: str, deployment: str, interface_id: str) -> None:
        """Write our ids on the interface with this `iface-id`, close its port, and fix its OpenFlow number.

        Raises:
            NotFoundError: `network.port_not_found`.
            ConflictError: `network.port_taken`: the interface has other ids of ours, or two have this one.
        """
        labels = {_PORT: port, _INSTANCE: instance, _DEPLOYMENT: deployment}

        def label(tables: Any, _: Any) -> None:
            found = [
                (row, interface)
                for row, interface in self._interfaces(tables)
                if interface.external_ids.get("iface-id") == interface_id
            ]
            if not found:
                raise NotFoundError(
                    "network.port_not_found", f"no interface on {self._bridge} carries the id of {port}"
                )
            if len(found) > 1:
                names = ", ".join(sorted(interface.name for _, interface in found))
                raise ConflictError("network.port_taken", f"{names} all carry the id of {port}")
            row, interface = found[0]
            interface.verify("external_ids")
            before = {key: interface.external_ids.get(key) for key in labels}
            if any(value not in (None, labels[key]) for key, value in before.items()):
                raise ConflictError(
                    "network.port_taken", f"{interface.name} is marked as {before}, not {labels}"
                )
            for key, value in labels.items():
                interface.setkey("external_ids", key, value)
            number = _ofport(interface)
            if number is not None:
                # A restarted switch must not give the number, and with it old flows, to another port.
                interface.ofport_request = number
            _close(row, interface)

        self._database.change(label)

    def open_port(self, port: str, vlan: int) -> None:
        """Access mode, the tag and the mark that says open, in one transaction.

        Raises:
            NotFoundError: `network.port_not_found`.
        """

        def to_open(tables: Any, _: Any) -> None:
            row, interface = self._ours(tables, port)
            row.vlan_mode, row.tag, row.trunks = "access", vlan, []
            interface.setkey("external_ids", _OPEN, "true")

        self._database.change(to_open)

    def close_port(self, port: str) -> None:
        """The dead VLAN as only trunk, no tag, no mark, in one transaction.

        Raises:
            NotFoundError: `network.port_not_found`.
        """
        self._database.change(lambda tables, _: _close(*self._ours(tables, port)))

    def remove_port(self, port: str) -> None:
        """Take the port off the bridge, and its tap away if libvirt left one. Unknown is fine."""

        def remove(tables: Any, _: Any) -> list[str]:
            names = []
            for row, interface in self._interfaces(tables):
                if interface.external_ids.get(_PORT) == port:
                    self._row(tables).delvalue("ports", row)
                    names.append(str(interface.name))
            return names

        for name in self._database.change(remove):
            if name == tap_name(port):
                _delete_tap(name)

    def replace_flows(self, program: FlowProgram) -> None:
        """Make the switch's flows equal to the program in one bundle."""
        self._flows.replace(program)

    def drift(self, program: FlowProgram) -> tuple[str, ...]:
        """Differences between the switch's flows (`-`) and the program (`+`)."""
        return self._flows.difference(program)

    def _row(self, tables: Any) -> Any:
        return next((row for row in tables["Bridge"].rows.values() if row.name == self._bridge), None)

    def _interfaces(self, tables: Any) -> Iterator[tuple[Any, Any]]:
        """Ports with their interfaces; the bridge's own port and the uplink left out."""
        bridge = self._row(tables)
        for row in bridge.ports if bridge is not None else ():
            if row.name not in (self._bridge, self._uplink):
                for interface in row.interfaces:
                    yield row, interface

    def _ours(self, tables: Any, port: str) -> tuple[Any, Any]:
        found = [pair for pair in self._interfaces(tables) if pair[1].external_ids.get(_PORT) == port]
        if len(found) != 1:
            raise NotFoundError("network.port_not_found", f"{port} is {len(found)} times on {self._bridge}")
        return found[0]

    def _observe(self, tables: Any) -> ObservedSwitch:
        bridge = self._row(tables)
        if bridge is None:
            return ObservedSwitch(exists=False, fail_mode="", ports=())
        ports, foreign = [], []
        for row, interface in self._interfaces(tables):
            marks = interface.external_ids
            if len(row.interfaces) == 1 and all(key in marks for key in (_PORT, _INSTANCE, _DEPLOYMENT)):
                ports.append(_observed(row, interface))
            else:
                foreign.append(str(interface.name))
        uplink = next((row for row in bridge.ports if row.name == self._uplink), None)
        return ObservedSwitch(
            exists=True,
            fail_mode=str(_one(bridge.fail_mode) or ""),
            ports=tuple(sorted(ports, key=lambda port: (port.port, port.interface))),
            foreign=tuple(sorted(foreign)),
            uplink_ofport=_ofport(uplink.interfaces[0]) if uplink is not None else None,
        )

    def _is_as_wanted(self, tables: Any) -> bool:
        bridge = self._row(tables)
        if bridge is None or bridge.external_ids.get(_BRIDGE_MARK) != self._bridge:
            return False
        joined = self._uplink is None or any(row.name == self._uplink for row in bridge.ports)
        return joined and not any(True for _ in self._stray_settings(bridge))

    def _stray_settings(self, bridge: Any) -> Iterator[tuple[str, Any]]:
        for column, wanted in {**_SETTINGS, "datapath_type": self._datapath_type}.items():
            now = getattr(bridge, column)
            same = sorted(now) == sorted(wanted) if isinstance(wanted, list) else _one(now) == wanted
            if not same:
                yield column, wanted
        if bridge.other_config.get("disable-in-band") != "true":
            yield "other_config", {**bridge.other_config, "disable-in-band": "true"}

    def _make_bridge(self, tables: Any, transaction: Any) -> None:
        bridge = self._row(tables)
        if bridge is None:
            bridge = self._insert_bridge(tables, transaction)
        else:
            bridge.verify("external_ids")
            if bridge.external_ids.get(_BRIDGE_MARK) != self._bridge:
                raise ConflictError(
                    "network.bridge_foreign",
                    f"there is a bridge {self._bridge} that is not ours",
                    hint="remove it, or give the agent another bridge name",
                )
            for column, wanted in list(self._stray_settings(bridge)):
                setattr(bridge, column, wanted)
        if self._uplink is not None:
            self._join_uplink(tables, transaction, bridge, self._uplink)

    def _insert_bridge(self, tables: Any, transaction: Any) -> Any:
        if any(row.name == self._bridge for row in tables["Port"].rows.values()):
            raise ConflictError("network.bridge_foreign", f"there is a port {self._bridge} that is not ours")
        bridge = transaction.insert(tables["Bridge"])
        bridge.name = self._bridge
        bridge.external_ids = {_BRIDGE_MARK: self._bridge}
        bridge.other_config = {"disable-in-band": "true"}
        for column, wanted in {**_SETTINGS, "datapath_type": self._datapath_type}.items():
            if wanted != []:
                setattr(bridge, column, wanted)
        # A bridge shows up in the kernel through a port of its own name and type internal.
        bridge.ports = [_insert_port(tables, transaction, self._bridge, "internal", {})]
        (root,) = tables["Open_vSwitch"].rows.values()
        root.addvalue("bridges", bridge)
        return bridge

    def _join_uplink(self, tables: Any, transaction: Any, bridge: Any, uplink: str) -> None:
        existing = next((row for row in tables["Port"].rows.values() if row.name == uplink), None)
        if existing is None:
            marks = {_UPLINK_MARK: "true"}
            bridge.addvalue("ports", _insert_port(tables, transaction, uplink, self._uplink_type, marks))
        elif not any(row.uuid == existing.uuid for row in bridge.ports):
            raise ConflictError(
                "network.uplink_foreign",
                f"{uplink} is on a bridge other than {self._bridge}",
                hint="free it first",
            )


def _insert_port(tables: Any, transaction: Any, name: str, kind: str, marks: dict[str, str]) -> Any:
    interface = transaction.insert(tables["Interface"])
    interface.name, interface.type, interface.external_ids = name, kind, marks
    port = transaction.insert(tables["Port"])
    port.name, port.interfaces = name, [interface]
    return port


def _close(row: Any, interface: Any) -> None:
    row.vlan_mode, row.tag, row.trunks = "trunk", [], [DEAD_VLAN]
    interface.delkey("external_ids", _OPEN)


def _one(value: Any) -> Any:
    """An optional column is a list of none or one in the database's Python."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _ofport(interface: Any) -> int | None:
    """None until the switch gave a number; it says -1 when it cannot."""
    number = _one(interface.ofport)
    return int(number) if number is not None and 1 <= number <= MAX_OFPORT else None


def _observed(row: Any, interface: Any) -> ObservedPort:
    marks = interface.external_ids
    tag = _one(row.tag)
    return ObservedPort(
        port=marks[_PORT],
        instance=marks[_INSTANCE],
        deployment=marks[_DEPLOYMENT],
        interface=str(interface.name),
        ofport=_ofport(interface),
        vlan_mode=str(_one(row.vlan_mode) or ""),
        vlan=int(tag) if tag is not None else None,
        trunks=tuple(sorted(int(vlan) for vlan in row.trunks)),
        open=marks.get(_OPEN) == "true",
    )


def _delete_tap(name: str) -> None:
    """Only a tap can be deleted here: the kernel shows `tun_flags` for nothing else."""
    if not Path(f"/sys/class/net/{name}/tun_flags").exists():
        return
    try:
        subprocess.run(
            ["ip", "link", "delete", "dev", name], capture_output=True, text=True, check=True, timeout=20
        )
    except subprocess.CalledProcessError as exc:
        raise HostError(
            "network.tap_stays", f"the tap {name} cannot be deleted: {exc.stderr.strip()}"
        ) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HostError("network.tap_stays", f"the tap {name} cannot be deleted: {exc}") from exc
