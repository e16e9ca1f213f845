"""The host as a system: S1 to S3, and versions with known faults."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hostprep.doctor.finding import MUST, POLICY, Look, all_of, finding, no_answer, shown
from hostprep.probe.files import listing, read_text
from hostprep.probe.keep import SSHD
from orchestrator.model import gpus
from orchestrator.model.doctor import Finding

UNIT = "bulkhead-agent.service"
_EXPOSURE = re.compile(r"exposure level for \S+: ([0-9.]+)")
#: The unit of playbooks/roles/agent with NVML; 3.5 without. What is open is needed, as its comments say.
MAX_EXPOSURE = 3.6
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
#: QEMU before this maps large BARs page by page: boots of minutes (cloud-hypervisor #7991 tells the same).
_FAST_MAPPING = (10, 1, 0)
_LARGE_BAR = 64 << 30
#: This one release crashes with IOMMUFD and networks by hostdev; the next is mended.
_BAD_LIBVIRT = (12, 1)


@dataclass(frozen=True)
class SystemFacts:
    """None is what could not be read."""

    ssh: dict[str, str] | None
    synchronised: str | None
    reboot_required: bool | None
    kernel: str | None
    #: Kernels that are installed.
    kernels: tuple[str, ...] | None
    exposure: float | None
    qemu: tuple[int, ...] | None
    libvirt: tuple[int, ...] | None
    largest_bar: int


def read(look: Look) -> SystemFacts:
    """Read them; programs only list."""
    root = look.root
    ssh = look.run(tuple(SSHD.split()))
    run, boot = listing(root / "run"), listing(root / "boot")
    exposure = _EXPOSURE.search(look.run(("systemd-analyze", "security", "--no-pager", UNIT)) or "")
    pool = gpus.candidates(look.host)
    return SystemFacts(
        ssh=None if ssh is None else dict(_pair(line) for line in ssh.splitlines() if " " in line),
        synchronised=look.run(("timedatectl", "show", "--property=NTPSynchronized", "--value")),
        reboot_required=None if run is None else "reboot-required" in run,
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        kernels=None if boot is None else tuple(
            each.removeprefix("vmlinuz-") for each in boot if each.startswith("vmlinuz-")
        ),
        exposure=float(exposure[1]) if exposure else None,
        qemu=version(look.run(("qemu-system-x86_64", "--version"))),
        libvirt=version(look.run(("virsh", "--version"))),
        largest_bar=max((size for each in pool for size in each.bars.values()), default=0),
    )  # fmt: skip


def judge(facts: SystemFacts) -> tuple[Finding, ...]:
    """Answer S1, S2, S3 and `ver.*`."""
    ssh = facts.ssh
    keys_only = None if ssh is None else (
        ssh.get("passwordauthentication") == "no"
        and ssh.get("kbdinteractiveauthentication", "no") == "no"
        and ssh.get("permitrootlogin") != "yes"
    )  # fmt: skip
    forwards = None if ssh is None else ssh.get("x11forwarding")
    clock = (facts.synchronised or "").strip()
    return (
        finding("S1", MUST, keys_only, subject="ssh", expected="keys only",
                read=None if ssh is None else " ".join(f"{key}={said}" for key, said in sorted(ssh.items())),
                mend="PasswordAuthentication no, PermitRootLogin prohibit-password; systemctl reload ssh",
                source=no_answer("sshd")),
        finding("S1", POLICY, None if forwards is None else forwards == "no", subject="x11",
                expected="ssh forwards no displays", read=forwards,
                mend="X11Forwarding no; systemctl reload ssh", source=no_answer("sshd")),
        finding("S1", MUST, None if clock not in ("yes", "no") else clock == "yes", subject="clock",
                expected="the clock is synchronised", read=clock, mend="systemctl enable --now chrony",
                source=no_answer("timedatectl")),
        _updates(facts),
        finding("S3", POLICY, None if facts.exposure is None else facts.exposure <= MAX_EXPOSURE,
                subject=UNIT, expected=f"systemd calls its exposure {MAX_EXPOSURE} or less",
                read=facts.exposure, mend=f"systemd-analyze security {UNIT} lists what is open",
                source="no such unit, or " + no_answer("systemd-analyze")),
        *_versions(facts),
    )  # fmt: skip


def version(text: str | None) -> tuple[int, ...] | None:
    """Return the first version in what a program says of itself."""
    found = _VERSION.search(text or "")
    return None if found is None else tuple(int(part or 0) for part in found.groups())


def _updates(facts: SystemFacts) -> Finding:
    newer = None
    # Where the running one is not installed it came from elsewhere (PXE, a hypervisor), and so will the next.
    if facts.kernel is not None and facts.kernel in (facts.kernels or ()):
        newer = [each for each in facts.kernels or () if version_key(each) > version_key(facts.kernel)]
    installed = f"newer: {', '.join(newer or ()) or 'none'}"
    if newer is None:
        installed = "/boot not read" if facts.kernels is None else "/boot does not hold it"
    waiting = None if facts.reboot_required is None else not facts.reboot_required
    return finding(
        "S2",
        POLICY,
        all_of(waiting, None if newer is None else not newer),
        expected="no reboot waits, the newest kernel that is installed runs",
        read=f"{shown(facts.kernel)} runs; {installed}"
        + ("; a reboot waits" if facts.reboot_required else ""),
        mend="bulkhead host drain NAME, then reboot",
    )


def version_key(release: str) -> tuple[int, ...]:
    """Order kernel releases by the numbers in them."""
    return tuple(int(part) for part in re.findall(r"\d+", release))


def _versions(facts: SystemFacts) -> tuple[Finding, ...]:
    large = facts.largest_bar >= _LARGE_BAR
    fast = None if facts.qemu is None else facts.qemu >= _FAST_MAPPING or not large
    good = None if facts.libvirt is None else facts.libvirt[:2] != _BAD_LIBVIRT
    return (
        finding("ver.qemu", POLICY, fast, expected="QEMU 10.1 or newer for BARs of 64 GiB and more",
                read=_dotted(facts.qemu), mend="update QEMU, or expect minutes for a start with such a GPU",
                source=no_answer("qemu-system-x86_64")),
        finding("ver.libvirt", POLICY, good, expected="not libvirt 12.1, which crashes with IOMMUFD",
                read=_dotted(facts.libvirt), mend="update libvirt to 12.2 or newer",
                source=no_answer("virsh")),
    )  # fmt: skip


def _dotted(found: tuple[int, ...] | None) -> str:
    return ".".join(map(str, found or ()))


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(" ")
    return key.lower(), value
