"""The agent's unit: systemd's own verdict on its sandbox, and that each hole in it is known."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, StrictUndefined

from hostprep.doctor.system import MAX_EXPOSURE

TEMPLATE = Path(__file__).parents[3] / "playbooks" / "roles" / "agent" / "templates" / "agent.service.j2"
#: What is reached; a service that is root on the network has 1.6 with no capability at all.
WITHOUT_NVML, WITH_NVML = 3.5, 3.6
#: What systemd counts as open, and why it must be; nothing else may be.
OPEN = {
    "SystemCallFilter_privileged": "chown and setuid, see the capabilities",
    "RootDirectoryOrRootImage": "the host's root is what it works on",
    "UserOrDynamicUser": "root",
    "CapabilityBoundingSet_CAP_KILL": "workers under other uids",
    "CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER": "files of VMs' uids",
    "CapabilityBoundingSet_CAP_CHOWN_FSETID_SETFCAP": "files of VMs' uids",
    "CapabilityBoundingSet_CAP_SET_UID_GID_PCAP": "workers under other uids",
    "CapabilityBoundingSet_CAP_SYS_PTRACE": "evidence from /proc",
    "CapabilityBoundingSet_CAP_NET_ADMIN": "the firewall's rules",
    "CapabilityBoundingSet_CAP_SYS_ADMIN": "PCI configuration space",
    "ProtectKernelTunables": "binding and reset through /sys",
    "RestrictAddressFamilies_AF_NETLINK": "devices that come and go",
    "RestrictAddressFamilies_AF_UNIX": "libvirt",
    "RestrictAddressFamilies_AF_INET_INET6": "its controller",
    "ProcSubset": "/proc/sys",
    "PrivateNetwork": "its controller",
    "PrivateUsers": "root",
    "PrivateDevices": "whether /dev/vfio has a file of a group",
    "DeviceAllow": "pseudo terminals; the clock is systemd's own exception",
    "IPAddressDeny": "where its controller is, only the operator knows",
}


def unit(folder: Path, nvidia: str = "none", addresses: tuple[str, ...] = (), without: str = "") -> Path:
    """Write the unit as the playbook does; `without` leaves out the lines that begin so."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        bulkhead_state_dir="/var/lib/bulkhead",
        bulkhead_nvidia=nvidia,
        bulkhead_controller_addresses=list(addresses),
    )
    kept = [line for line in text.splitlines() if not (without and line.startswith(without))]
    path = folder / "bulkhead-agent.service"
    path.write_text("\n".join(kept) + "\n")
    return path


def below(path: Path, limit: float) -> bool:
    """Whether systemd calls the unit's exposure so much or less."""
    threshold = f"--threshold={round(limit * 10)}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", threshold, "--no-pager", path], capture_output=True
    )
    assert done.stdout, done.stderr
    return done.returncode == 0


def asked(path: Path) -> list[dict[str, Any]]:
    command = ["systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(("nvidia", "limit"), [("none", WITHOUT_NVML), ("nvml", WITH_NVML)])
def test_systemd_calls_its_exposure_what_it_should_be(tmp_path: Path, nvidia: str, limit: float) -> None:
    made = unit(tmp_path, nvidia)
    assert below(made, limit)
    assert not below(made, limit - 0.2)
    assert limit <= MAX_EXPOSURE


@pytest.mark.parametrize(
    "line",
    ["NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectClock", "SystemCallFilter"],
)
def test_a_line_less_is_noticed(tmp_path: Path, line: str) -> None:
    assert not below(unit(tmp_path, without=line), WITHOUT_NVML)


def test_nothing_is_open_but_what_is_needed(tmp_path: Path) -> None:
    open_ = {each["json_field"] for each in asked(unit(tmp_path)) if each["exposure"] not in (None, "0.0")}
    assert open_ == set(OPEN)


def test_an_operator_who_names_the_controllers_shuts_the_rest_of_the_network(tmp_path: Path) -> None:
    made = unit(tmp_path, addresses=("192.0.2.1", "2001:db8::/64"))
    assert below(made, WITHOUT_NVML - 0.1)
    assert "IPAddressAllow=192.0.2.1 2001:db8::/64\n" in made.read_text()


def test_every_capability_is_explained() -> None:
    text = TEMPLATE.read_text()
    (given,) = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for each in given.split():
        assert re.search(rf"\b{each.removeprefix('CAP_')}\b", comments), each
