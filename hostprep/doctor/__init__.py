"""What is wrong with a host, before a tenant finds out: read-only, live values, one finding per check.

Each group of checks is one file: `read` fills its facts, `judge` answers from them alone. The agent runs it
hourly, `bulkhead agent doctor` at once, on this machine or on a recording.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hostprep.doctor import devices, kernel, libvirt, memory, network, share, sysctls, system, units
from hostprep.doctor.finding import Look
from hostprep.doctor.programs import run_program
from hostprep.probe.files import HostPath
from orchestrator.model.doctor import Finding
from orchestrator.model.host import HostFacts

__all__ = ["examine", "run_program"]


def examine(
    host: HostFacts,
    bridge: str,
    root: HostPath = Path("/"),
    run: Callable[[tuple[str, ...]], str | None] = run_program,
) -> tuple[Finding, ...]:
    """Ask all checks of one host.

    Args:
        host: what the probe read of it.
        bridge: the tenants' bridge.
        root, run: files and programs of this machine, or of a recording.
    """
    look = Look(root, run, host, bridge)
    guests = libvirt.read(look)
    return (
        *kernel.judge(kernel.read(look, libvirt.core_scheduling(guests))),
        *sysctls.judge(sysctls.read(look)),
        *devices.judge(devices.read(look, libvirt.relaxed_acs(guests))),
        *memory.judge(memory.read(look)),
        *libvirt.judge(guests),
        *units.judge(units.read(look)),
        *share.judge(share.read(look)),
        *network.judge(network.read(look)),
        *system.judge(system.read(look)),
    )
