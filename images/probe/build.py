"""Builds the probe image: fetches the packages, compiles the tools, packs the initramfs, writes the disk.

`python -m images.probe.build` builds if need be and prints where the image is. Nothing is installed, nothing
needs root; packages come from wherever the machine's own apt is set up to get them. Called by
`image.ensure_image`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from images.probe import disk, initramfs, packages, recipe
from images.probe.initramfs import Entry
from images.probe.recipe import HERE, ProbeImageError, run_tool

EPOCH = 1_700_000_000
"""The date on every file of the image. Any would do; it has to stay the same."""

TOOLS = ("init", "probed", "disktest", "sendframe", "listenframe", "pcimem", "dmaedu")
COMPILE = (
    *("musl-gcc", "-std=gnu11", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
    # The kernel's headers after musl's own: the C library's must win where both have one.
    *("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu"),
    # The build folder's name must not reach the binary.
    *("-Wl,--build-id=none", "-ffile-prefix-map=.=probe"),
)
SYSLINUX_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
SYSLINUX_EFI_LOADER = Path("/usr/lib/syslinux/modules/efi64/ldlinux.e64")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """What a build leaves: the disk image and the versions of the packages in it."""

    disk: Path
    packages: dict[str, str]


def build(work: Path, progress: Progress) -> Built:
    """Build the image in the empty folder `work`.

    Takes about ten seconds and a download of some 40 MB.

    Raises:
        ProbeImageError: a package cannot be had, a tool fails, or the image becomes too large.
    """
    root = work / "root"
    root.mkdir()
    progress("fetching Debian packages")
    versions = packages.fetch(work, root)
    progress("got " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    progress("compiling the guest's tools")
    tools = work / "tools"
    run_tool(
        [*COMPILE, "-o", str(tools), *sorted(path.name for path in HERE.glob("src/*.c"))], cwd=HERE / "src"
    )
    progress("packing the initramfs")
    initrd = work / "initrd"
    initrd.write_bytes(initramfs.write_cpio(_entries(root, tools.read_bytes()), EPOCH))
    progress("writing the disk")
    config = work / "syslinux.cfg"
    config.write_text(disk.boot_config(" ".join(recipe.KERNEL_OPTIONS)))
    kernel = _only(root.glob("boot/vmlinuz-*"), "kernel")
    files = [
        disk.DiskFile("vmlinuz", kernel),
        disk.DiskFile("initrd", initrd),
        disk.DiskFile("syslinux.cfg", config),
        disk.DiskFile("EFI/BOOT/BOOTX64.EFI", root / "usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"),
        disk.DiskFile("EFI/BOOT/ldlinux.e64", _efi_loader(work)),
        disk.DiskFile("EFI/BOOT/syslinux.cfg", config),
    ]
    image = work / "probe.raw"
    disk.write_disk(image, files, _read(SYSLINUX_MBR), EPOCH)
    return Built(image, versions)


def _entries(root: Path, tools: bytes) -> list[Entry]:
    busybox = root / "bin/busybox"
    if not busybox.exists():
        busybox = root / "usr/bin/busybox"
    applets = run_tool([str(busybox), "--list"]).split()
    hidden = sorted(set(TOOLS[1:]) & set(applets))
    if hidden:
        raise ProbeImageError(
            "probe.tool_hidden", f"busybox has applets with the names of our tools: {hidden}"
        )
    entries = [
        initramfs.directory(name)
        for name in ("bin", "lib", "lib/modules", "probe", "probe/bin", "dev", "etc")
    ]
    entries += [initramfs.directory(name) for name in ("proc", "sys", "run")]
    entries.append(initramfs.directory("tmp", 0o1777))
    entries.append(initramfs.regular("probe/bin/probe-tools", tools, 0o755))
    entries += [initramfs.symlink(f"probe/bin/{name}", "probe-tools") for name in TOOLS]
    entries.append(initramfs.symlink("init", "probe/bin/init"))
    entries.append(initramfs.regular("bin/busybox", _read(busybox), 0o755))
    # The shell runs an applet before a program of the same name: none of our tools may be called like one.
    entries += [
        initramfs.symlink(f"bin/{name}", "busybox") for name in sorted(set(applets) - {"busybox", "init"})
    ]
    return entries + _modules(root)


def _modules(root: Path) -> list[Entry]:
    folder = _only((path for path in root.rglob("lib/modules/*") if path.is_dir()), "modules folder")
    lists = {"base": recipe.BASE_MODULES, "scsi": recipe.SCSI_MODULES}
    entries: list[Entry] = []
    packed: set[str] = set()
    for name, wanted in lists.items():
        modules = initramfs.loading_order(wanted, folder)
        names = [module.name for module in modules]
        entries.append(initramfs.regular(f"lib/modules/{name}", "".join(f"{n}\n" for n in names).encode()))
        entries += [
            initramfs.regular(f"lib/modules/{module.name}", module.data)
            for module in modules
            if module.name not in packed
        ]
        packed.update(names)
    return entries


def _efi_loader(work: Path) -> Path:
    copy = work / "ldlinux.e64"
    copy.write_bytes(_read(SYSLINUX_EFI_LOADER))
    return copy


def _only(found: Iterable[Path], what: str) -> Path:
    paths = sorted(found)
    if len(paths) != 1:
        raise ProbeImageError(
            "probe.package_shape", f"the packages hold {len(paths)} of what should be one {what}"
        )
    return paths[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ProbeImageError(
            "probe.file_missing",
            f"{path} cannot be read: {exc}",
            hint="install the packages that bindep.txt names",
        ) from exc


def main() -> int:
    """Build the image if it is not there and print its path on stdout; progress goes to stderr."""
    from images.probe.image import ensure_image

    try:
        image = ensure_image(progress=lambda line: print(f"probe image: {line}", file=sys.stderr, flush=True))
    except ProbeImageError as exc:
        print(exc.explain(), file=sys.stderr)
        return exc.exit_code
    print(image.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
