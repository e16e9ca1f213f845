"""The switch and the host's firewall: N1 and N2. That flows equal the policy is the agent's to show."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, Look, all_of, finding, no_answer, shown
from hostprep.doctor.libvirt import listening_ports
from hostprep.probe.keep import NFT_RULESET
from orchestrator.model.doctor import Finding

#: OVSDB's and OpenFlow's own ports (IANA).
_OPEN_PORTS = frozenset({6640, 6653})
#: The oldest that gets security updates in Debian 12.
_MIN_OVS = (3, 1)
_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class NetworkFacts:
    """None is what could not be read."""

    ovs_version: str | None
    manager: str | None
    controller: str | None
    fail_mode: str | None
    listening: frozenset[int] | None
    #: Policy of the base chains by hook (`input`, `forward`); a hook without a chain lets all through.
    policies: dict[str, tuple[str, ...]] | None


def read(look: Look) -> NetworkFacts:
    """Read them; programs only list."""
    ask = ("ovs-vsctl", "--no-wait", "--timeout=5")
    said = look.run(("ovs-vsctl", "--version"))
    version = None if said is None else _VERSION.search(said)
    return NetworkFacts(
        ovs_version=version[0] if version else None,
        manager=look.run((*ask, "get-manager")),
        controller=look.run((*ask, "get-controller", look.bridge)),
        fail_mode=look.run((*ask, "get-fail-mode", look.bridge)),
        listening=listening_ports(look.root),
        policies=_policies(look.run(tuple(NFT_RULESET.split()))),
    )


def judge(facts: NetworkFacts) -> tuple[Finding, ...]:
    """Answer N1 and N2."""
    version = _VERSION.match(facts.ovs_version or "")
    new = None if version is None else (int(version[1]), int(version[2])) >= _MIN_OVS
    quiet = None if facts.listening is None else not _OPEN_PORTS & facts.listening
    plain = [
        None if text is None else all(line.startswith(("ssl:", "punix:", "unix:")) for line in text.split())
        for text in (facts.manager, facts.controller)
    ]
    secure = None if facts.fail_mode is None else facts.fail_mode.strip() == "secure"
    dropped = None if facts.policies is None else {
        hook: "drop" in facts.policies.get(hook, ()) for hook in ("input", "forward")
    }  # fmt: skip
    told = (facts.ovs_version, facts.fail_mode, facts.manager, facts.controller)
    said = (
        f"version {shown(facts.ovs_version)}",
        f"fail mode {shown(None if facts.fail_mode is None else facts.fail_mode.strip() or 'not set')}",
        *(
            f"{name} {shown(None if text is None else ' '.join(text.split()) or 'none')}"
            for name, text in (("manager", facts.manager), ("controller", facts.controller))
        ),
    )
    return (
        finding(
            "N1",
            MUST,
            all_of(new, quiet, *plain, secure),
            expected=f"Open vSwitch {_MIN_OVS[0]}.{_MIN_OVS[1]}+, fail mode secure, nothing in clear",
            read=None if all(each is None for each in told) else ", ".join(said),
            source=no_answer("ovs-vsctl"),
            mend="ovs-vsctl del-manager, del-controller BRIDGE, set-fail-mode BRIDGE secure",
        ),
        finding(
            "N2",
            MUST,
            None if dropped is None else all(dropped.values()),
            expected="the host's firewall drops what nobody allowed, in and through",
            read=None
            if facts.policies is None
            else ", ".join(
                f"{hook} {' '.join(facts.policies.get(hook, ())) or 'without a chain'}"
                for hook in ("input", "forward")
            ),
            mend="give nftables' input and forward chains policy drop, and allow ssh",
            source=no_answer("nft"),
        ),
    )


def _policies(text: str | None) -> dict[str, tuple[str, ...]] | None:
    if text is None:
        return None
    found: dict[str, tuple[str, ...]] = {}
    try:
        for each in json.loads(text)["nftables"]:
            chain = each.get("chain", {})
            # A chain of another family (arp, bridge) says nothing of what reaches the host.
            if chain.get("hook") in ("input", "forward") and chain.get("family") in ("inet", "ip", "ip6"):
                found[chain["hook"]] = (*found.get(chain["hook"], ()), str(chain.get("policy", "accept")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found
