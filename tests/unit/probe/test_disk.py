"""The disk: bounded in size, with the boot record firmware looks for, the same bytes from the same files."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from images.probe import disk
from images.probe.recipe import ProbeImageError

EPOCH = 1_600_000_000


def make(folder: Path, text: str) -> bytes:
    folder.mkdir()
    source = folder / "source"
    source.write_text(text)
    files = [disk.DiskFile("vmlinuz", source), disk.DiskFile("EFI/BOOT/BOOTX64.EFI", source)]
    # Enough content for a file system that FAT16 is possible with.
    filler = folder / "filler"
    filler.write_bytes(bytes(9 * disk.MIB))
    image = folder / "disk.raw"
    disk.write_disk(image, [*files, disk.DiskFile("filler", filler)], b"\x90" * 440, EPOCH)
    return image.read_bytes()


def test_the_same_files_give_the_same_disk(tmp_path: Path) -> None:
    first = make(tmp_path / "first", "hello")
    assert first == make(tmp_path / "second", "hello")
    assert first != make(tmp_path / "third", "hallo")
    assert len(first) % disk.MIB == 0
    partition = f"{tmp_path}/first/disk.raw@@{disk.PARTITION_START_BYTES}"
    shown = subprocess.run(
        ["mtype", "-i", partition, "::EFI/BOOT/BOOTX64.EFI"], capture_output=True, check=True
    )
    assert shown.stdout == b"hello"


def test_the_boot_record_names_one_active_efi_partition() -> None:
    record = disk.master_boot_record(b"\x90" * 440, 2048, 30000)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    active, kind, start, count = struct.unpack("<B3xB3xII", record[446:462])
    assert (active, kind, start, count) == (0x80, 0xEF, 2048, 30000)
    assert record[462:510] == bytes(48)
    assert record[:440] == b"\x90" * 440


def test_more_than_twenty_mib_is_refused() -> None:
    room = disk.MAX_DISK_BYTES - disk.PARTITION_START_BYTES - disk.FAT_OVERHEAD_BYTES
    sectors = disk.partition_sectors(room)
    assert sectors * disk.SECTOR_BYTES + disk.PARTITION_START_BYTES == disk.MAX_DISK_BYTES
    with pytest.raises(ProbeImageError) as failure:
        disk.partition_sectors(room + 1)
    assert failure.value.code == "probe.too_large"


def test_the_boot_menu_does_not_wait() -> None:
    config = disk.boot_config("quiet console=ttyS0")
    assert "TIMEOUT 0\n" in config
    assert "PROMPT 0\n" in config
    assert "APPEND quiet console=ttyS0\n" in config
