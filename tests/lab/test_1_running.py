"""Two VMs of acme and one of globex run, and the host's kernel confirms every promise."""

from __future__ import annotations

import base64
import json

import pytest

from images.labhost.session import lab_secret
from images.labhost.tenants import keys_for
from tests.lab import kernel_view

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def report(lab_host):
    return lab_host.session.apply(lab_host.order(lab_host.all))


def test_all_run_with_every_check_passed(report):
    assert report["ok"], [each["error"] for each in report["instances"]]
    for each in report["instances"]:
        assert each["phase"] == "running"
        assert {verdict["status"] for verdict in each["verdicts"]} == {"pass"}


def test_second_apply_changes_nothing(lab_host, report):
    pids = {each["instance"]: each["pid"] for each in report["instances"]}

    again = lab_host.session.apply(lab_host.order(lab_host.all))

    assert {each["instance"]: each["pid"] for each in again["instances"]} == pids
    assert {step["step"] for step in again["steps"]} == {"read_host", "collect_evidence", "accept_assignment"}


@pytest.mark.usefixtures("report")
def test_gpu_is_on_vfio_and_held_by_exactly_its_qemu(lab_host):
    for instance in (lab_host.acme, lab_host.globex):
        address = instance.devices[0].address
        assert kernel_view.driver(lab_host, address) == "vfio-pci"
        assert kernel_view.vfio_holders(lab_host, address) == {kernel_view.qemu_pid(lab_host, instance.id)}


@pytest.mark.usefixtures("report")
def test_vcpu_threads_sit_on_exactly_the_planned_cpus(lab_host):
    for instance in lab_host.all:
        planned = {pin.vcpu: str(pin.host_cpu) for pin in instance.cpus.pins}
        assert kernel_view.vcpu_cpus(lab_host, kernel_view.qemu_pid(lab_host, instance.id)) == planned


@pytest.mark.usefixtures("report")
def test_guest_memory_lies_on_the_planned_node_only(lab_host):
    for instance in lab_host.all:
        cell = instance.memory.cells[0]
        pages = kernel_view.hugepages_by_node(lab_host, kernel_view.qemu_pid(lab_host, instance.id))
        assert set(pages) == {cell.node}
        assert pages[cell.node] * 2 >= cell.memory_mib


@pytest.mark.usefixtures("report")
def test_every_qemu_has_a_uid_of_its_own_and_no_power(lab_host):
    uids = set()
    for instance in lab_host.all:
        status = lab_host.sh(f"cat /proc/{kernel_view.qemu_pid(lab_host, instance.id)}/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        uids.add(fields["Uid"].split()[0])
        assert int(fields["CapEff"], 16) == 0
        assert fields["NoNewPrivs"].strip() == "1"
        assert fields["Seccomp"].strip() == "2"
    assert len(uids) == 3
    assert "0" not in uids


@pytest.mark.usefixtures("report")
def test_volumes_are_luks_as_specified(lab_host):
    for instance in lab_host.all:
        path = lab_host.sh(
            f"find /var/lib/bulkhead/volumes -path '*{instance.volumes[0].id}*' -size +3M -type f"
        )
        dump = lab_host.sh(f"cryptsetup luksDump '{path}'")
        for line in ("Version:       \t1", "Cipher name:   \taes", "Cipher mode:   \txts-plain64"):
            assert line in dump
        assert "Hash spec:     \tsha256" in dump
        assert "MK bits:       \t512" in dump


@pytest.mark.usefixtures("report")
def test_no_passphrase_anywhere(lab_host):
    keys = keys_for(lab_host.all, lab_secret(lab_host.host.lab))
    found = scan(lab_host, base64.b64decode(keys[lab_host.acme.volumes[0].id]))
    assert found == []


@pytest.mark.usefixtures("report")
def test_canary_scan_finds_what_is_planted(lab_host):
    canary = b"planted-canary-0123456789abcdef!"
    lab_host.sh(f"echo {base64.b64encode(canary).decode()} >/var/lib/bulkhead/planted")
    try:
        assert scan(lab_host, canary) != []
    finally:
        lab_host.sh("rm /var/lib/bulkhead/planted")


def scan(lab_host, canary: bytes) -> list:
    """Scan the lab host for a canary, which is given on standard input alone."""
    done = lab_host.host.ssh(
        "journalctl --sync || true; cd /opt/bulkhead/src && "
        "/opt/bulkhead/venv/bin/python -m orchestrator.agent.evidence.canary "
        "/etc/libvirt /var/lib/libvirt /var/lib/bulkhead /var/log /run /tmp /root /home",
        timeout_s=400,
        check=False,
        input=canary,
    )
    assert done.stdout.strip(), done.stderr
    body = json.loads(done.stdout)
    return body["hits"] if isinstance(body, dict) else body


@pytest.mark.usefixtures("report")
def test_guest_sees_exactly_what_was_ordered(lab_host):
    for instance in (lab_host.acme, lab_host.globex):
        seen = lab_host.session.ask(instance.id, {"op": "report"})["report"]
        assert seen["hostname"] == instance.name
        assert seen["cpus"]["online"] == len(instance.cpus.pins)
        assert 200 * 1024 < seen["memory_kib"] <= instance.memory.cells[0].memory_mib * 1024
        gpus = [f for f in seen["pci"] if (f["vendor"], f["device"]) == ("1234", "1111")]
        assert len(gpus) == 1
        assert not [f for f in seen["pci"] if f["class"].startswith("0c03")], "no USB"
        nics = [nic for nic in seen["network"] if nic["name"] != "lo"]
        assert [nic["mac"] for nic in nics] == [port.mac for port in instance.ports]
        assert "10.0.0.10/24" in nics[0]["addresses"]


@pytest.mark.usefixtures("report")
def test_guest_uses_its_gpu_memory_and_disk(lab_host):
    seen = lab_host.session.ask(lab_host.acme.id, {"op": "report"})["report"]
    gpu = next(f["address"] for f in seen["pci"] if (f["vendor"], f["device"]) == ("1234", "1111"))
    code, output = lab_host.run(
        lab_host.acme,
        f"pcimem fill {gpu} 0 b01dface --bytes 65536 && pcimem search {gpu} 0 b01dface --bytes 65536",
    )
    assert code == 0, output
    assert "hits=16384 " in output
    disk = next(d["name"] for d in seen["disks"] if d["size_bytes"] == 1 << 30)
    code, output = lab_host.run(lab_host.acme, f"disktest /dev/{disk} 512")
    assert code == 0, output
