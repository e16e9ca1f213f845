"""A sysfs in a directory, and the kernel behind it.

`FakeSys` builds the tree: real folders and relative symlinks, as the kernel lays them out. `FakeKernel`
stands where the worker stands and gives writes their side effects by moving symlinks; it can be told to
misbehave.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agent.devices.worker import BusyError, InFlight, OverdueError, Write, WriteFailedError

GPU = "0000:21:00.0"
AUDIO = "0000:21:00.1"
BRIDGE = "0000:20:00.0"
BOOT_ID = "4f2c6d1e-0000-4000-8000-000000000001"


def config_space(
    *, vendor: int = 0x1234, header_type: int = 0, serial: bytes | None = None, before: tuple[int, ...] = ()
) -> bytes:
    """Make configuration space: ids, header type and extended capabilities (`before` the serial number's)."""
    config = bytearray(4096)
    config[0:2] = vendor.to_bytes(2, "little")
    config[0x0E] = header_type
    offset = 0x100
    capabilities = [*before, *([0x0003] if serial is not None else [])]
    for index, capability in enumerate(capabilities):
        following = 0 if index == len(capabilities) - 1 else offset + 0x40
        config[offset : offset + 4] = (capability | 1 << 16 | following << 20).to_bytes(4, "little")
        if capability == 0x0003 and serial is not None:
            config[offset + 4 : offset + 12] = serial[::-1]
        offset += 0x40
    return bytes(config)


class FakeSys:
    """Builds `sys`, `proc` and `dev` under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put("proc/sys/kernel/random/boot_id", BOOT_ID)
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/kernel/iommu_groups", "dev/vfio"):
            (root / folder).mkdir(parents=True)
        self.put("sys/bus/pci/drivers_probe", "")

    def put(self, path: str, text: str | int) -> None:
        """Write a file with a last newline, as the kernel shows it."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def folder(self, address: str) -> Path:
        return self.root / "sys/devices/pci0000:20" / address

    def driver(self, name: str) -> None:
        """Load a PCI driver."""
        self.put(f"sys/bus/pci/drivers/{name}/unbind", "")

    def function(
        self,
        address: str,
        *,
        ids: tuple[str, str] = ("0x1234", "0x1111"),
        class_code: str = "0x038000",
        node: int | None = 1,
        driver: str | None = None,
        group: int | None = None,
        reset: str | None = "flr bus",
        config: bytes | None = None,
    ) -> Path:
        """Add a function; None leaves a file or link out."""
        folder = self.folder(address)
        here = str(folder.relative_to(self.root))
        self.put(f"{here}/vendor", ids[0])
        self.put(f"{here}/device", ids[1])
        self.put(f"{here}/class", class_code)
        self.put(f"{here}/driver_override", "(null)")
        self.put(f"{here}/power_state", "D0")
        self.put(f"{here}/power/control", "auto")
        (folder / "config").write_bytes(config_space() if config is None else config)
        if node is not None:
            self.put(f"{here}/numa_node", node)
        if reset is not None:
            self.put(f"{here}/reset_method", reset)
            self.put(f"{here}/reset", "")
        (self.root / "sys/bus/pci/devices" / address).symlink_to(f"../../../devices/pci0000:20/{address}")
        if driver is not None:
            self.attach(address, driver)
        if group is not None:
            self.join(address, group)
        return folder

    def attach(self, address: str, driver: str) -> None:
        if not (self.root / "sys/bus/pci/drivers" / driver).exists():
            self.driver(driver)
        (self.folder(address) / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")

    def join(self, address: str, group: int) -> None:
        members = self.root / "sys/kernel/iommu_groups" / str(group) / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(f"../../../../devices/pci0000:20/{address}")
        (self.folder(address) / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")

    def opened(self, pid: int, target: str) -> None:
        """Let a process hold a file open."""
        folder = self.root / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(len(list(folder.iterdir())))).symlink_to(target)


@dataclass
class FakeKernel:
    """Implements `Worker` on a FakeSys.

    Attributes:
        natural: the driver that takes a function without override, by address.
        log: what was written, as (attribute, text).
    """

    sys: FakeSys
    natural: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    #: Attribute whose write hangs: the deadline passes and the worker stays in flight.
    hangs_at: str | None = None
    #: Attribute whose write the kernel refuses, and with what.
    refuses: dict[str, int] = field(default_factory=dict)
    ignores_override: bool = False
    #: Configuration space after a reset.
    after_reset: bytes | None = None
    busy: dict[str, InFlight] = field(default_factory=dict)
    #: Somebody else's hung call: reading what the device's lock guards takes for ever.
    locked: bool = False

    def write(self, address: str, action: str, writes: Sequence[Write]) -> None:
        if address in self.busy:
            raise BusyError(self.busy[address])
        for each in writes:
            if each.optional and not each.path.exists():
                continue
            attribute = each.path.name
            if attribute == self.hangs_at:
                self.busy[address] = InFlight(4242, action)
                raise OverdueError(4242, 1.0, stuck=True)
            if attribute in self.refuses:
                raise WriteFailedError(str(each.path), self.refuses[attribute])
            if not each.path.exists():
                raise WriteFailedError(str(each.path), errno.ENOENT)
            self.log.append((attribute, each.text))
            self._act(address, attribute, each)

    def read(self, address: str, path: Path) -> str | None:
        if address in self.busy:
            raise BusyError(self.busy[address])
        if self.locked:
            raise OverdueError(4243, 1.0, stuck=True)
        return path.read_text().strip() if path.exists() else None

    def in_flight(self, address: str) -> InFlight | None:
        return self.busy.get(address)

    def _act(self, address: str, attribute: str, each: Write) -> None:
        folder = self.sys.folder(address)
        if attribute == "driver_override":
            each.path.write_text("(null)\n" if each.text == "\n" else each.text + "\n")
        elif attribute == "unbind":
            (folder / "driver").unlink()
            group = folder / "iommu_group"
            if group.is_symlink():
                (self.sys.root / "dev/vfio" / group.readlink().name).unlink(missing_ok=True)
        elif attribute == "drivers_probe" and not (folder / "driver").exists():
            self._probe(address)
        elif attribute == "reset" and self.after_reset is not None:
            (folder / "config").write_bytes(self.after_reset)
        elif attribute == "control":
            each.path.write_text(each.text + "\n")

    def _probe(self, address: str) -> None:
        override = (self.sys.folder(address) / "driver_override").read_text().strip()
        chosen = self.natural.get(address) if override == "(null)" or self.ignores_override else override
        if chosen is None:
            return
        self.sys.attach(address, chosen)
        group = self.sys.folder(address) / "iommu_group"
        if "vfio" in chosen and group.is_symlink():
            (self.sys.root / "dev/vfio" / group.readlink().name).touch()
