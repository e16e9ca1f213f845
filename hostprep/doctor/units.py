"""What systemd runs, and who may speak to libvirt: L1's sockets, `sys.units`, K7's sleep.

Asks systemd for the state of units, not for files: a drop-in or a mask may stand in several places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, POLICY, Look, finding, no_answer
from orchestrator.model.doctor import Finding

#: Started at each boot: the host serves no tenant without them.
ENABLED = (
    "openvswitch-switch.service",
    "virtlogd.socket",
    "libvirtd.socket",
    "libvirtd.service",
    "chrony.service",
    "bulkhead-firewall.service",
    "bulkhead-agent.service",
)
#: Never started: they would put guests' memory on a disk, stop VMs behind our back, or listen.
MASKED = (
    "hibernate.target",
    "apport.service",
    "libvirt-guests.service",
    "libvirtd-tcp.socket",
    "libvirtd-tls.socket",
)
SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
SHOW = (
    "systemctl",
    "show",
    "--no-pager",
    "--property=Id,LoadState,UnitFileState,SocketMode,Environment",
    *dict.fromkeys((*ENABLED, *MASKED, *SOCKETS)),
)
SLEEP = ("systemd-analyze", "--no-pager", "cat-config", "systemd/sleep.conf")
_SLEEPS = ("AllowSuspend", "AllowHibernation", "AllowHybridSleep", "AllowSuspendThenHibernate")
_ROOT_ONLY = frozenset({"0600", "0700"})
_DAEMON, _TIMEOUT = "libvirtd.service", "--timeout"

Unit = Mapping[str, str]
_Test = Callable[[Unit], bool]
_VERBS = {"enabled": "enable --now", "masked": "mask --now"}


@dataclass(frozen=True)
class UnitFacts:
    """Properties of units by their name; None where systemd does not answer."""

    units: Mapping[str, Unit] | None
    #: Of the settings of sleep, the last of each name.
    sleep: Mapping[str, str] | None


def read(look: Look) -> UnitFacts:
    """Read them."""
    said, sleep = look.run(SHOW), look.run(SLEEP)
    blocks = [_block(each) for each in (said or "").split("\n\n")]
    return UnitFacts(
        None if said is None else {each["Id"]: each for each in blocks if "Id" in each},
        None if sleep is None else _block(sleep),
    )


def judge(facts: UnitFacts) -> tuple[Finding, ...]:
    """Answer `sys.units`, L1's sockets and K7's sleep."""
    units = facts.units
    return (
        _sockets(units),
        _all_are(units, ENABLED, "enabled", lambda each: each.get("UnitFileState") == "enabled"),
        _all_are(units, MASKED, "masked", lambda each: each.get("LoadState") == "masked"),
        _stays(units),
        _sleeps(facts.sleep),
    )


def _sockets(units: Mapping[str, Unit] | None) -> Finding:
    loaded = [] if units is None else [
        units[each] for each in SOCKETS if units.get(each, {}).get("LoadState") == "loaded"
    ]  # fmt: skip
    open_ = [each for each in loaded if each.get("SocketMode") not in _ROOT_ONLY]
    told = open_ or loaded
    return finding(
        "L1",
        MUST,
        not open_ if loaded else None,
        subject="sockets",
        expected="root alone speaks to libvirt",
        read=", ".join(f"{each['Id']} {each.get('SocketMode')}" for each in told),
        mend="SocketMode=0600 in a drop-in of each, then: systemctl restart libvirtd.socket",
        source="libvirtd has no sockets, or " + no_answer("systemctl"),
    )


def _all_are(units: Mapping[str, Unit] | None, wanted: tuple[str, ...], state: str, is_so: _Test) -> Finding:
    others = [] if units is None else [each for each in wanted if not is_so(units.get(each, {}))]
    return finding(
        "sys.units",
        POLICY,
        None if units is None else not others,
        subject=state,
        expected=f"{state}: {' '.join(wanted)}",
        read=None if units is None else f"not {state}: {' '.join(others)}" if others else "all are",
        mend=f"systemctl {_VERBS[state]} {' '.join(others)}",
        source=no_answer("systemctl"),
    )


def _stays(units: Mapping[str, Unit] | None) -> Finding:
    daemon = None if units is None else units.get(_DAEMON)
    loaded = daemon is not None and daemon.get("LoadState") == "loaded"
    given = daemon.get("Environment", "") if daemon is not None else ""
    return finding(
        "sys.units",
        POLICY,
        None if not loaded else _TIMEOUT not in given,
        subject=_DAEMON,
        expected="libvirt stays when nobody speaks to it",
        read=(given or "no environment") if loaded else None,
        mend="Environment=LIBVIRTD_ARGS= in a drop-in of it, then: systemctl restart libvirtd.service",
        source=f"no {_DAEMON}, or " + no_answer("systemctl"),
    )


def _sleeps(settings: Mapping[str, str] | None) -> Finding:
    allowed = [] if settings is None else [each for each in _SLEEPS if settings.get(each) != "no"]
    return finding(
        "K7",
        POLICY,
        None if settings is None else not allowed,
        subject="sleep",
        expected="systemd puts the host to no sleep: guests' memory would go to a disk, or stop with it",
        read=None if settings is None else f"not refused: {' '.join(allowed)}" if allowed else "refused",
        mend="=no for each in a drop-in of /etc/systemd/sleep.conf.d",
        source=no_answer("systemd-analyze"),
    )


def _block(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
