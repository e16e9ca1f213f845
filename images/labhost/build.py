"""Builds the lab host's image: a root disk, a kernel and an initrd, cached by the hash of their recipe.

Packages come from the mirrors that this machine's own apt uses, Python packages through its own pip. Two
roots are made: a builder, which compiles what needs a compiler and is thrown away, and the host itself.
Nothing is compiled or downloaded inside the running lab. Called by `__main__`; needs root. It never touches
a finished image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from images.labhost import debian

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
LOCK = REPOSITORY / "requirements-host.lock"
TEST_LOCK = REPOSITORY / "requirements-test.lock"
# The contract tests run inside the lab host against the real drivers.
TEST_PACKAGES = ("pytest", "pytest-timeout", "pluggy", "iniconfig", "hypothesis")
SUITE = "trixie"
TARGET_PYTHON = "3.13"  # trixie's
ROOT_SIZE = "12G"  # sparse: about 1 GiB is used
# Raised when the way of building changes in a file that the hash does not cover.
RECIPE_FORMAT = "1"
SDISTS = "libvirt-python,ovs"  # these have no wheels for the target; the builder root compiles them
CLEAN_ENVIRONMENT = "PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """One finished image: what QEMU needs to boot it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.img"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


def cache_folder() -> Path:
    """Where built images are kept, outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "bulkhead"


def recipe_files() -> list[Path]:
    """Every file whose change makes another image; `image_lock` counts besides."""
    folders = [HERE / "recipe", HERE / "modules", HERE / "fakenvml"]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted([*found, HERE / "build.py", HERE / "debian.py"])


def image_lock() -> str:
    """Return the pins of the Python packages inside: not those of tests that never run in there."""
    merged = merged_lock(LOCK.read_text(), TEST_LOCK.read_text(), TEST_PACKAGES)
    # Who needs a package is said in comments, and changes with every test's dependencies.
    return "".join(line for line in merged.splitlines(True) if not line.lstrip().startswith("#"))


def recipe_hash(files: Iterable[Path] | None = None, lock: str | None = None) -> str:
    """Hash names, modes and contents of the recipe and its pins; 16 hex digits."""
    pins = image_lock() if lock is None else lock
    digest = hashlib.sha256(f"{RECIPE_FORMAT}\0{SUITE}\0{len(pins)}\0{pins}".encode())
    for path in files if files is not None else recipe_files():
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o111
        name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path.name
        digest.update(f"{name}\0{mode}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def image_if_built() -> Image | None:
    """Return the image of the recipe as it stands now, if the cache holds it."""
    image = Image(cache_folder() / f"labhost-{recipe_hash()}")
    return image if image.manifest.exists() else None


def build(say: Say) -> Image:
    """Return the image of this recipe, made now if the cache lacks it. About three minutes; needs root."""
    built = image_if_built()
    if built is not None:
        return built
    if os.geteuid() != 0:
        raise PermissionError("building the lab host needs root: run it with sudo")
    final = cache_folder() / f"labhost-{recipe_hash()}"
    work = cache_folder() / f"building-labhost-{os.getpid()}"
    work.mkdir(parents=True)
    started = time.monotonic()

    def step(text: str) -> None:
        say(f"lab host image [{time.monotonic() - started:4.0f} s] {text}")

    try:
        _build_into(work, step)
        shutil.rmtree(final, ignore_errors=True)
        (work / "out").rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in cache_folder().glob("labhost-*"):
        if old != final and not _in_use(old):
            step(f"removing the older {old.name}")
            shutil.rmtree(old, ignore_errors=True)
    step(f"ready: {final}")
    return Image(final)


def _in_use(folder: Path) -> bool:
    """Tell whether a process (another checkout's lab) has a file of `folder` open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink().is_relative_to(folder):
                return True
        except OSError:
            continue  # the process or descriptor is gone, or is not ours to look at
    return False


def _build_into(work: Path, step: Say) -> None:
    out = work / "out"
    out.mkdir()
    step("downloading Python packages")
    lock = work / "in" / "requirements.lock"
    lock.parent.mkdir()
    lock.write_text(image_lock())
    _download_python(work / "in" / "wheels", lock)
    for name in ("modules", "fakenvml"):
        shutil.copytree(HERE / name, work / "in" / name)
    shutil.copy(HERE / "recipe" / "compile.sh", work / "in" / "compile.sh")
    step("builder root: kernel modules, fake NVML, Python packages")
    products = work / "products.tar"
    debian.bootstrap(
        suite=SUITE,
        packages=_package_list("packages-builder.txt"),
        hooks=[
            f"customize-hook=copy-in {work / 'in'} /",
            # Without this machine's pip settings, which name folders that the root does not have.
            f'customize-hook=env -i {CLEAN_ENVIRONMENT} chroot "$1" sh /in/compile.sh',
            f'customize-hook=tar -C "$1/out" -cf {products} .',
        ],
        log=work / "builder.log",
    )
    step("host root: packages")
    root = work / "root.tar"
    rootfs = HERE / "recipe" / "rootfs"
    debian.bootstrap(
        suite=SUITE,
        packages=_package_list("packages-host.txt"),
        hooks=[
            f'essential-hook=tar -C {rootfs} --owner=0 --group=0 -cf - . | tar -C "$1" -xf -',
            f'customize-hook=tar -C "$1" --keep-directory-symlink -xf {products}',
            f"customize-hook=copy-in {HERE / 'recipe' / 'customize.sh'} /tmp",
            'customize-hook=chroot "$1" sh /tmp/customize.sh',
            f'customize-hook=cat "$1"/boot/vmlinuz-* >{out / "vmlinuz"}',
            f'customize-hook=cat "$1"/boot/initrd.img-* >{out / "initrd.img"}',
            f'customize-hook=chroot "$1" dpkg-query -W >{out / "packages.txt"}',
            'customize-hook=rm -rf "$1"/tmp/* "$1"/boot/initrd.img-* "$1"/boot/vmlinuz-*',
            f"customize-hook=truncate -s {ROOT_SIZE} {out / 'root.img'}",
        ],
        log=work / "host.log",
        target=root,
    )
    step("root disk")
    tree = work / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-C", tree, "--numeric-owner", "--xattrs", "-xf", root], check=True)
    options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-L", "labhost", "-E", options, "-d", tree, out / "root.img"], check=True
    )
    (out / "root.img").chmod(0o444)
    kernel = sorted(path.name for path in (tree / "usr/lib/modules").iterdir())[0]
    manifest = {"recipe": recipe_hash(), "suite": SUITE, "kernel": kernel, "built_at": int(time.time())}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _package_list(name: str) -> list[str]:
    lines = (HERE / "recipe" / name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def merged_lock(host: str, test: str, names: Iterable[str]) -> str:
    """Return the host's lock with the pins of `names` from the test lock, hashes included."""
    wanted = set(names)
    pins = re.findall(r"^(([A-Za-z0-9_.-]+)==.*\n(?:[ \t]+.*\n)*)", test, flags=re.MULTILINE)
    chosen = {name: text for text, name in pins if name in wanted}
    missing = wanted - chosen.keys()
    if missing:
        raise RuntimeError(f"requirements-test.lock has no {', '.join(sorted(missing))}")
    already = set(re.findall(r"^([A-Za-z0-9_.-]+)==", host, flags=re.MULTILINE))
    return host.rstrip("\n") + "\n" + "".join(chosen[name] for name in sorted(wanted - already))


def _download_python(wheels: Path, lock: Path) -> None:
    wheels.mkdir(parents=True)
    platforms = [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
    argv = [
        *debian.pip_command(), "download", "--quiet", "--dest", str(wheels), "--no-deps", "--require-hashes",
        "--only-binary=:all:", f"--no-binary={SDISTS}", f"--python-version={TARGET_PYTHON}",
        *(f"--platform={platform}" for platform in platforms), "-r", str(lock),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not fetch the lab host's Python packages:\n{done.stderr[-3000:]}")


def main() -> int:
    """Build and print the folder."""
    print(build(lambda text: print(text, file=sys.stderr, flush=True)).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
