"""Gets Debian packages by the machine's own apt configuration and unpacks them, without installing anything.

Package lists are fetched anew into the build folder: the machine's own may be stale or, as in many
containers, not there at all, and they are not ours to change. Needs no root. Called by `build`.
"""

from __future__ import annotations

import os
from pathlib import Path

from images.probe.recipe import FETCHED_PACKAGES, KERNEL_METAPACKAGE, ProbeImageError, run_tool


class Archive:
    """The machine's package sources, with lists and cache of their own under `work`."""

    def __init__(self, work: Path) -> None:
        """Fetch the lists: a few seconds and some 10 MB."""
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (work / name).mkdir(parents=True)
        self._debs = work / "debs"
        self._options = ["-o", f"Dir::State::lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
        # As root, apt fetches as a user of its own, who may not write here.
        self._options += ["-o", "APT::Sandbox::User=root"]
        self._options += ["-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3"]
        self._env = {**os.environ, "LC_ALL": "C"}
        run_tool(["apt-get", "-q", *self._options, "update"], env=self._env)

    def kernel_package(self) -> str:
        """Return the name of the package with the newest kernel.

        Raises:
            ProbeImageError: the archive has none.
        """
        text = run_tool(["apt-cache", *self._options, "depends", KERNEL_METAPACKAGE], env=self._env)
        for line in text.splitlines():
            if line.strip().startswith("Depends: linux-image-"):
                return line.split()[1]
        raise ProbeImageError("probe.no_kernel", f"{KERNEL_METAPACKAGE} names no kernel package")

    def unpack(self, names: list[str], root: Path) -> dict[str, str]:
        """Download the packages, unpack them under `root` and return their versions by name."""
        run_tool(["apt-get", "-q", *self._options, "download", *names], cwd=self._debs, env=self._env)
        versions: dict[str, str] = {}
        for deb in sorted(self._debs.glob("*.deb")):
            shown = run_tool(["dpkg-deb", "-W", "--showformat=${Package} ${Version}", str(deb)])
            name, version = shown.split()
            versions[name] = version
            run_tool(["dpkg-deb", "-x", str(deb), str(root)])
        if set(versions) != set(names):
            raise ProbeImageError("probe.no_package", f"wanted {sorted(names)}, apt gave {sorted(versions)}")
        return versions


def fetch(work: Path, root: Path) -> dict[str, str]:
    """Put the kernel and what else the image needs under `root`; return the versions by package name."""
    archive = Archive(work)
    return archive.unpack([archive.kernel_package(), *FETCHED_PACKAGES], root)
