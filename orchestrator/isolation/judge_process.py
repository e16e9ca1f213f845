"""Verdicts on the QEMU process itself: whose it is, what it may do, where its memory goes in a crash."""

from __future__ import annotations

import re

from orchestrator.isolation.facts import CoreFacts, InstanceFacts
from orchestrator.isolation.judging import numbers, verdict
from orchestrator.model.evidence import Verdict
from orchestrator.model.launch import LaunchSpec

#: QEMU's own seccomp groups that must be off; `on` alone leaves them allowed.
SANDBOX = ("on", "obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny")

#: AppArmor's per-domain profile in enforce mode, or SELinux' svirt type with a category pair of its own.
_CONFINED = re.compile(r"^libvirt-[0-9a-f-]{36} \(enforce\)$|:svirt(?:_tcg)?_t:s0:c\d+,c\d+$")


def judge_process(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    """Judge identity and confinement of the process."""
    subject = spec.instance.id
    known = facts.pid is not None and facts.start_ticks is not None and facts.guest_name is not None
    return [
        verdict(
            "process.instance",
            subject,
            f"a live process named {subject}",
            f"pid {facts.pid}, start {facts.start_ticks}, named {facts.guest_name}",
            facts.guest_name == subject if known else None,
        ),
        *_identity(spec, facts),
        *_privileges(subject, facts),
        *_confinement(subject, facts),
    ]


def _identity(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    subject, own = spec.instance.id, frozenset({spec.uid})
    groups_ok: bool | None = None
    if facts.gids is not None and facts.groups is not None:
        groups_ok = facts.gids == own and facts.groups <= own
    twins = None
    if facts.neighbours is not None:
        twins = frozenset(n.pid for n in facts.neighbours if n.uid == spec.uid)
    return [
        verdict(
            "process.uid",
            subject,
            f"uid {spec.uid} only",
            f"uids {numbers(facts.uids)}",
            None if facts.uids is None else facts.uids == own,
        ),
        verdict(
            "process.gid",
            subject,
            f"gid {spec.uid} only",
            f"gids {numbers(facts.gids)}, groups {numbers(facts.groups)}",
            groups_ok,
        ),
        verdict(
            "process.uid_alone",
            subject,
            f"no other VM under uid {spec.uid}",
            f"pids {numbers(twins)}",
            None if twins is None else not twins,
        ),
    ]


def _privileges(subject: str, facts: InstanceFacts) -> list[Verdict]:
    caps = (facts.cap_effective, facts.cap_permitted)
    sandbox = None if facts.sandbox is None else set(facts.sandbox.split(","))
    return [
        verdict(
            "process.caps",
            subject,
            "no capabilities",
            f"effective {caps[0] or 0:#x}, permitted {caps[1] or 0:#x}",
            None if None in caps else caps == (0, 0),
        ),
        verdict(
            "process.no_new_privs",
            subject,
            "NoNewPrivs 1",
            f"NoNewPrivs {int(bool(facts.no_new_privs))}",
            facts.no_new_privs,
        ),
        verdict(
            "process.seccomp",
            subject,
            "Seccomp 2 (filter)",
            f"Seccomp {facts.seccomp}",
            None if facts.seccomp is None else facts.seccomp == 2,
        ),
        verdict(
            "process.sandbox",
            subject,
            ",".join(SANDBOX),
            facts.sandbox or "no -sandbox",
            None if sandbox is None else sandbox >= set(SANDBOX),
        ),
    ]


def _confinement(subject: str, facts: InstanceFacts) -> list[Verdict]:
    alike = None
    if facts.neighbours is not None and facts.label is not None:
        alike = frozenset(n.pid for n in facts.neighbours if n.label == facts.label)
    return [
        verdict(
            "process.confined",
            subject,
            "a profile of its own, enforced",
            facts.label or "no label",
            None if facts.label is None else _CONFINED.search(facts.label) is not None,
        ),
        verdict(
            "process.label_alone",
            subject,
            "no other VM under the same label",
            f"pids {numbers(alike)}",
            None if alike is None else not alike,
        ),
        verdict(
            "process.namespace",
            subject,
            "a mount namespace of its own",
            "its own" if facts.own_mount_namespace else "the host's",
            facts.own_mount_namespace,
        ),
        verdict(
            "process.no_core",
            subject,
            "core limit 0 that is obeyed",
            _core(facts.core),
            None if facts.core is None else _no_core(facts.core),
        ),
    ]


def _core(core: CoreFacts | None) -> str:
    return "" if core is None else f"soft {core.soft_bytes}, hard {core.hard_bytes}, pattern {core.pattern}"


def _no_core(core: CoreFacts) -> bool:
    """A soft limit of 0 stops the kernel's own dump; core(5): a pipe gets the dump whatever the limit.

    systemd-coredump is the one handler known to be given the limit and to obey it.
    """
    piped = core.pattern.startswith("|")
    return core.soft_bytes == 0 and (not piped or "systemd-coredump" in core.pattern)
