"""The probe image boots by both kinds of firmware, with and without a seed, and again after power off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.probe.disk import MAX_DISK_BYTES
from tests.scenario.conftest import META_A, USER_DATA, seed_disk
from tests.scenario.probe_vm import ProbeVM, write_seed

pytestmark = pytest.mark.scenario

NO_NETWORK = {"version": 2, "ethernets": {}}
UEFI_CODE, UEFI_VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@contextmanager
def booted(folder: Path, image: Path, extra: Sequence[str] = ()):
    vm = ProbeVM(folder, image, extra)
    try:
        yield vm
    finally:
        vm.stop()


def test_image_is_at_most_20_mib(image: Path) -> None:
    assert 1 << 20 < image.stat().st_size <= MAX_DISK_BYTES == 20 << 20


def test_uefi_boots_it_and_it_finds_its_seed_on_a_scsi_cd(
    image: Path, new_folder: Callable[[], Path]
) -> None:
    folder = new_folder()
    shutil.copyfile(UEFI_VARS, folder / "vars.fd")
    seed = folder / "seed.iso"
    # Tools write the label in either case; meta-data comes as lines, too.
    write_seed(
        seed, "instance-id: vm_u-g3\nlocal-hostname: 'probe-u'\n", USER_DATA, json.dumps(NO_NETWORK), "CIDATA"
    )
    (folder / "more.raw").write_bytes(bytes(8 << 20))
    extra = [
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={UEFI_CODE}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={folder}/vars.fd"),
        *("-device", "virtio-scsi-pci,id=scsi"),
        *("-drive", f"file={seed},format=raw,if=none,id=seed,readonly=on", "-device", "scsi-cd,drive=seed"),
        *("-drive", f"file={folder}/more.raw,format=raw,if=none,id=more"),
        *("-device", "scsi-hd,drive=more,serial=more-0001"),
    ]
    with booted(folder, image, extra) as vm:
        console = vm.connect(240)
        report = console.report()
        assert console.run("test -d /sys/firmware/efi").exit_code == 0
        console.close()

    assert (report["hostname"], report["instance_id"]) == ("probe-u", "vm_u-g3")
    assert (report["seed"]["errors"], report["seed"]["device"]) == ([], "sr0")
    found = {d["name"]: (d["serial"], d["size_bytes"]) for d in report["disks"]}
    assert found["sda"] == ("more-0001", 8 << 20)


def test_bios_boots_it_again_from_its_disk_as_the_same_instance(
    image: Path, new_folder: Callable[[], Path]
) -> None:
    folder = new_folder()
    seed = seed_disk(folder / "seed.iso", META_A, NO_NETWORK)
    with booted(folder, image, seed) as vm:
        console = vm.connect()
        first = console.report()
        assert console.run("test -d /sys/firmware/efi").exit_code == 1
        marked = "printf kept | dd of=/dev/vda bs=1M seek=50 conv=notrunc,fsync 2>/dev/null"
        assert console.run(marked, 60).exit_code == 0
        console.close()
        vm.press_power_button()
        assert vm.wait_for_end(120) == 0
        assert "probe: power off" in vm.console_text()
    with booted(folder, image, seed) as vm:
        console = vm.connect()
        second = console.report()
        assert (
            console.run("dd if=/dev/vda bs=1M skip=50 count=1 2>/dev/null | head -c 4", 60).output == "kept"
        )
        console.close()

    assert first["instance_id"] == second["instance_id"] == "vm_a-g1"
    assert first["seed"] == second["seed"]


@pytest.mark.parametrize("label", [None, "config-2"])
def test_without_a_seed_it_reports_all_the_same_and_says_so(
    image: Path, new_folder: Callable[[], Path], label: str | None
) -> None:
    folder = new_folder()
    extra = seed_disk(folder / "seed.iso", META_A, NO_NETWORK, label) if label else []
    with booted(folder, image, extra) as vm:
        console = vm.connect()
        report = console.report()
        console.close()

    assert (report["hostname"], report["instance_id"]) == ("probe", None)
    assert report["seed"]["found"] is False
    assert report["cpus"]["online"] == 2
