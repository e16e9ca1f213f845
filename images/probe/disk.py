"""Puts files on a raw disk that BIOS and UEFI firmware boot: MBR, one FAT partition, syslinux for both.

It works on plain files with mtools and syslinux, without root, loop devices or mounts. The same files give
the same bytes. Called by `build`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from images.probe.recipe import ProbeImageError, run_tool

SECTOR_BYTES = 512
MIB = 1024 * 1024
PARTITION_START_BYTES = MIB
MAX_DISK_BYTES = 20 * MIB
FAT_OVERHEAD_BYTES = 256 * 1024
"""Two tables, the root directory and cluster ends of a FAT16 file system below 20 MiB, with room to spare."""

MBR_CODE_BYTES = 440
EFI_SYSTEM_PARTITION = 0xEF
"""Type of the partition: UEFI looks for it, and the MBR's code goes by the active flag alone."""

VOLUME_SERIAL = "b01c4ead"
DISK_SIGNATURE = 0xB01C4EAD
FAT_LABEL = "PROBE"


@dataclass(frozen=True)
class DiskFile:
    """A file for the disk: its path there, and where it is now."""

    target: str
    source: Path


def boot_config(options: str) -> str:
    """Return syslinux's configuration: one entry, no menu, no waiting."""
    head = "DEFAULT probe\nPROMPT 0\nTIMEOUT 0\nLABEL probe\n"
    return f"{head}  KERNEL /vmlinuz\n  INITRD /initrd\n  APPEND {options}\n"


def partition_sectors(content_bytes: int) -> int:
    """Return the partition's size in sectors for that much content, so that the disk ends on a MiB.

    Raises:
        ProbeImageError: the disk would be larger than the 20 MiB it may have.
    """
    disk_bytes = PARTITION_START_BYTES + content_bytes + FAT_OVERHEAD_BYTES
    disk_bytes = -(-disk_bytes // MIB) * MIB
    if disk_bytes > MAX_DISK_BYTES:
        raise ProbeImageError(
            "probe.too_large", f"the image has {disk_bytes} bytes, allowed: {MAX_DISK_BYTES}"
        )
    return (disk_bytes - PARTITION_START_BYTES) // SECTOR_BYTES


def master_boot_record(code: bytes, start_sector: int, sectors: int) -> bytes:
    """Return the 512 bytes of an MBR with one active partition. CHS fields say "use LBA" (all ones)."""
    lba = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, lba, EFI_SYSTEM_PARTITION, lba, start_sector, sectors)
    head = code[:MBR_CODE_BYTES].ljust(MBR_CODE_BYTES, b"\0") + struct.pack("<IH", DISK_SIGNATURE, 0)
    return head + entry + bytes(48) + b"\x55\xaa"


def write_disk(disk: Path, files: list[DiskFile], mbr_code: bytes, epoch: int) -> None:
    """Make the disk image at `disk`. Dates on it are all `epoch` (seconds since 1970, UTC).

    Raises:
        ProbeImageError: too large, or a tool fails.
    """
    # mtools and syslinux take their dates from here, and FAT keeps local time.
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    env |= {"MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
    sectors = partition_sectors(sum(_rounded(file.source) for file in files))
    start = PARTITION_START_BYTES // SECTOR_BYTES
    with disk.open("wb") as out:
        out.truncate(PARTITION_START_BYTES + sectors * SECTOR_BYTES)
    layout = ["-F", "16", "-s", "4", "-r", "512", "-h", str(start), "--offset", str(start), "--mbr=no"]
    identity = ["-i", VOLUME_SERIAL, "-n", FAT_LABEL, "--invariant"]
    kib = str(sectors * SECTOR_BYTES // 1024)
    run_tool(["mkfs.vfat", *layout, *identity, str(disk), kib], env=env)
    volume = f"{disk}@@{PARTITION_START_BYTES}"
    folders = sorted({parent.as_posix() for file in files for parent in Path(file.target).parents} - {"."})
    for folder in folders:
        run_tool(["mmd", "-i", volume, f"::{folder}"], env=env)
    for file in files:
        os.utime(file.source, (epoch, epoch))
        run_tool(["mcopy", "-m", "-i", volume, str(file.source), f"::{file.target}"], env=env)
    run_tool(["syslinux", "--install", "--offset", str(PARTITION_START_BYTES), str(disk)], env=env)
    with disk.open("r+b") as out:
        out.write(master_boot_record(mbr_code, start, sectors))


def _rounded(path: Path) -> int:
    return -(-path.stat().st_size // 2048) * 2048
