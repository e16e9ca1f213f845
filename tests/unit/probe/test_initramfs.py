"""The initramfs writer: the archive reads back as it was meant; modules come after what they depend on."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from images.probe import initramfs
from images.probe.recipe import ProbeImageError


def read_cpio(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """Name, mode, mtime and data of each entry, read by the format's own description."""
    at = 0
    found = []
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        assert fields[2] == fields[3] == 0, "owned by root"
        found.append((name, fields[1], fields[5], data[start : start + fields[6]]))
        at = -(-(start + fields[6]) // 4) * 4


def module(folder: Path, name: str, depends: str) -> None:
    (folder / f"{name}.ko").write_bytes(
        b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    )


def test_the_archive_reads_back() -> None:
    entries = [
        initramfs.directory("bin"),
        initramfs.regular("bin/tool", b"12345", 0o755),
        initramfs.regular("empty", b""),
        initramfs.symlink("init", "bin/tool"),
    ]
    data = initramfs.write_cpio(entries, 1234)
    assert len(data) % 512 == 0
    assert read_cpio(data) == [
        ("bin", 0o40755, 1234, b""),
        ("bin/tool", 0o100755, 1234, b"12345"),
        ("empty", 0o100644, 1234, b""),
        ("init", 0o120777, 1234, b"bin/tool"),
    ]
    assert data == initramfs.write_cpio(entries, 1234)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    module(tmp_path, "virtio-net", "net_failover,virtio")
    module(tmp_path, "net_failover", "failover")
    module(tmp_path, "failover", "")
    module(tmp_path, "virtio", "")
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc32.ko\nkernel/fs/fat-fs.ko\n")
    (tmp_path / "virtio.ko.xz").write_bytes(lzma.compress((tmp_path / "virtio.ko").read_bytes()))
    (tmp_path / "virtio.ko").unlink()
    order = initramfs.loading_order(["virtio_net", "virtio", "fat_fs"], tmp_path)
    names = [module.name for module in order]
    assert names == ["failover.ko", "net_failover.ko", "virtio.ko", "virtio-net.ko"]
    # The guest's loader reads them as they are.
    assert all(b"depends=" in module.data for module in order)


def test_a_module_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    module(tmp_path, "one", "missing")
    with pytest.raises(ProbeImageError) as failure:
        initramfs.loading_order(["one"], tmp_path)
    assert failure.value.code == "probe.no_module"
    assert "missing" in str(failure.value)
