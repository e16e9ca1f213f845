"""Makes a lab host a host of a controller the way an operator does: by `bulkhead host prepare`, over ssh.

The playbook runs whole; only what a lab cannot have is left out, and the inventory below says what that is.
Repeatable: a second run finds everything in place. Called by the showcase and the lab tests.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

from images.labhost import build, lab, machine
from images.labhost.control import LabController, bulkhead

LIMIT_S = 1500.0
DISK_GIB = 16


@dataclass(frozen=True)
class Prepared:
    """What one run of the playbook came to."""

    tasks: int
    #: Names of the tasks that changed the host.
    changed: tuple[str, ...]
    #: What waits for a restart, or for hands.
    waits: tuple[str, ...]


def prepare(controller: LabController, host: lab.LabHost, *, restart: bool = False) -> Prepared:
    """Prepare a lab host, let it in, and have its agent serve.

    Args:
        restart: let an agent that serves start anew, as after an upgrade.

    Raises:
        lab.LabError: it was refused; with what the command said.
    """
    for port in controller.ports():
        host.forward_back(port)
    name = f"lab{host.number}"
    inventory = host.folder / "inventory.yml"
    inventory.write_text(json.dumps(_inventory(host, name), indent=1))
    controller.operator().close()
    config = controller.write_profiles()
    words = ["--profile", "operator", "host", "prepare", name, "--inventory", str(inventory)]
    words += ["--user", "root"]
    words += ["--key", str(host.lab / "id_ed25519"), "--accept-new-key", "--keep-agent", "-o", "json"]
    words += ["--controller", controller.url, "--disk-gib", str(DISK_GIB)]
    done = subprocess.run(
        [*bulkhead(), *words], cwd=build.REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S,
        env={**os.environ, "XDG_CONFIG_HOME": str(config)}, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        host.raise_if_dead()
        raise lab.LabError(f"bulkhead host prepare ended with {done.returncode}:\n{done.stderr[-3000:]}")
    (item,) = json.loads(done.stdout)["items"]
    if restart:
        host.ssh("systemctl restart bulkhead-agent.service", 120)
    return Prepared(item["tasks"], tuple(item["changed"]), tuple(item["waits"]))


def _inventory(host: lab.LabHost, name: str) -> dict[str, Any]:
    """One host; what is said here beside its address is what a lab differs in from a server."""
    running = host.running()
    known = host.folder / "known_hosts"
    variables = {
        "ansible_host": machine.LOOPBACK,
        "ansible_port": running.ssh_port if running else 0,
        # What ssh learns of a lab host stays in the lab's folder.
        "ansible_ssh_common_args": f"-F /dev/null -o UserKnownHostsFile={shlex.quote(str(known))}",
        "ansible_python_interpreter": "/usr/bin/python3",
        # Debian's metapackage brings networks and a dozen daemons that a minute-long boot does without.
        "bulkhead_packages": [
            "apparmor", "ca-certificates", "chrony", "iproute2", "kmod", "libvirt-clients", "libvirt-daemon",
            "libvirt-daemon-driver-qemu", "libvirt-daemon-driver-secret", "nftables", "openvswitch-switch",
            "ovmf", "qemu-system-x86", "qemu-utils", "seabios",
        ],
        # What its doctor finds is shown by `bulkhead host doctor`, and keeps no tenant away.
        "bulkhead_agent_settings": {"doctor_accepted": ["*"]},
        "bulkhead_kernel_arguments": [{"check": "K3", "text": each} for each in machine.BOOT_ARGUMENTS],
        "bulkhead_hugepages": dict.fromkeys(range(2), machine.HUGEPAGES_PER_NODE),
    }  # fmt: skip
    return {"all": {"hosts": {name: variables}}}
