"""GPUs as NVIDIA's own library counts them, through nvidia-ml-py.

Only GPUs that the nvidia driver owns are there: one on vfio-pci is not NVML's to see. A host without the
library or driver is no fault; the inventory then says why it is empty. Called for evidence and by
`agent probe`, never needed to place or bind. NVML may load the driver where it is not loaded: `drives` looks
first whether it holds anything. A GPU that hangs may keep the caller waiting.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.model.errors import HostError
from orchestrator.model.host import PciFunction
from orchestrator.model.pci import parse_pci_address

#: nvml.h: NVML_GPU_RECOVERY_ACTION_*, what the driver wants done before the GPU is used on.
_RECOVERY = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)
#: nvml.h: NVML_GPU_FABRIC_STATE_*; 0 is a GPU without a fabric.
_FABRIC = ("", "not_started", "in_progress", "completed")

T = TypeVar("T")


@dataclass(frozen=True)
class Ecc:
    """Error correction now, and after the next reset."""

    current: bool
    pending: bool


@dataclass(frozen=True)
class RemappedRows:
    """Rows of memory that were replaced.

    Args:
        pending: one waits for a reset; the GPU needs it before its next tenant.
        failure: one could not be replaced; the GPU is to be exchanged.
    """

    correctable: int
    uncorrectable: int
    pending: bool
    failure: bool


@dataclass(frozen=True)
class Fabric:
    """Where a GPU stands in registering with its NVSwitch fabric.

    Args:
        state: `not_started`, `in_progress`, `completed`, or NVML's number where it has grown.
        status: NVML's return code of the registration; 0 is success.
        health_mask: NVML's bits, 0 where nothing is told.
    """

    state: str
    status: int
    clique: int
    health_mask: int


@dataclass(frozen=True)
class MigProfile:
    """One size of GPU instance that this GPU offers, with MIG on or off.

    Args:
        id: what creating, placing and counting take; the name differs between drivers for the same id.
        memory_mib: of one instance.
        slices: of compute, of 7 on the large GPUs.
        instances: at most, on an empty GPU.
        remaining: how many more could be made now; processes that fill the memory do not lower it.
        placements: (start, size) in memory slices.
    """

    id: int
    name: str
    memory_mib: int
    slices: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    encoders: int
    jpegs: int
    ofas: int
    instances: int
    remaining: int | None
    placements: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU; None where this GPU or its driver does not tell."""

    uuid: str
    name: str
    #: Board serial number; not the PCIe one.
    serial: str | None
    #: In sysfs' form.
    address: str
    #: Whether MIG is on now, and after the next reset; None on GPUs that cannot.
    mig: bool | None
    mig_pending: bool | None = None
    #: All of it, what the driver keeps for itself included.
    memory_mib: int | None = None
    ecc: Ecc | None = None
    remapped_rows: RemappedRows | None = None
    vbios: str | None = None
    inforom: str | None = None
    #: What the driver wants done first: `none`, `gpu_reset`, ..., or NVML's number where it has grown.
    recovery: str | None = None
    fabric: Fabric | None = None
    mig_profiles: tuple[MigProfile, ...] | None = None


@dataclass(frozen=True)
class NvmlInventory:
    """What NVML said."""

    gpus: tuple[NvmlGpu, ...]
    #: Why NVML could not be asked; empty when it answered.
    reason: str = ""
    driver: str | None = None
    #: Confidential computing of the whole host: `off`, `on`, or `devtools`, which protects nothing.
    confidential: str | None = None


def drives(functions: Iterable[PciFunction]) -> bool:
    """Tell whether the nvidia driver holds any of these: without one NVML has nothing to tell."""
    return any(each.driver == "nvidia" for each in functions)


def read_gpus() -> NvmlInventory:
    """Ask NVML for all its GPUs, in its order. Cost: some 100 calls a GPU.

    Raises:
        HostError: `nvml.failed`: the library started and then failed; a broken GPU is not an absent one.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return NvmlInventory((), "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        return NvmlInventory((), f"NVML does not start: {exc}")
    gpus: list[NvmlGpu] = []
    count = None
    try:
        driver = _if_told(nvml, lambda: str(nvml.nvmlSystemGetDriverVersion()))
        confidential = _confidential(nvml)
        count = nvml.nvmlDeviceGetCount()
        for index in range(count):
            gpus.append(_read_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        return NvmlInventory(tuple(gpus), "", driver, confidential)
    except (nvml.NVMLError, ValueError) as exc:
        where = "before it listed GPUs" if count is None else f"at GPU {len(gpus)} of {count}, counted from 0"
        raise HostError("nvml.failed", f"NVML failed {where}: {exc}") from exc
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: Any, handle: Any) -> NvmlGpu:
    mode = _if_told(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    ecc = _if_told(nvml, lambda: nvml.nvmlDeviceGetEccMode(handle))
    rows = _if_told(nvml, lambda: nvml.nvmlDeviceGetRemappedRows(handle))
    memory = _if_told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return NvmlGpu(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        serial=_if_told(nvml, lambda: str(nvml.nvmlDeviceGetSerial(handle))),
        address=str(parse_pci_address(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        mig=None if mode is None else mode[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        mig_pending=None if mode is None else mode[1] == nvml.NVML_DEVICE_MIG_ENABLE,
        memory_mib=None if memory is None else memory.total >> 20,
        ecc=None if ecc is None else Ecc(*(each == nvml.NVML_FEATURE_ENABLED for each in ecc)),
        remapped_rows=None if rows is None else RemappedRows(rows[0], rows[1], bool(rows[2]), bool(rows[3])),
        vbios=_if_told(nvml, lambda: str(nvml.nvmlDeviceGetVbiosVersion(handle))),
        inforom=_if_told(nvml, lambda: str(nvml.nvmlDeviceGetInforomImageVersion(handle))),
        recovery=_recovery(nvml, handle),
        fabric=_fabric(nvml, handle),
        mig_profiles=None if mode is None else _profiles(nvml, handle),
    )


def _recovery(nvml: Any, handle: Any) -> str | None:
    """Read it as a field, which has a return code of its own: 2 from a driver that does not know it."""
    field = nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    asked = _if_told(nvml, lambda: nvml.nvmlDeviceGetFieldValues(handle, [field]))
    if asked is None:
        return None
    [found] = asked
    if found.nvmlReturn in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_INVALID_ARGUMENT):
        return None
    if found.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(found.nvmlReturn)
    return _name(_RECOVERY, found.value.uiVal)


def _fabric(nvml: Any, handle: Any) -> Fabric | None:
    about = nvml.c_nvmlGpuFabricInfo_v2_t()
    asked = _if_told(nvml, lambda: nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(about)))
    if asked is None or about.state == nvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    return Fabric(_name(_FABRIC, about.state), about.status, about.cliqueId, about.healthMask)


def _confidential(nvml: Any) -> str | None:
    state = _if_told(nvml, nvml.nvmlSystemGetConfComputeState)
    if state is None:
        return None
    if state.devToolsMode == nvml.NVML_CC_SYSTEM_DEVTOOLS_MODE_ON:
        return "devtools"
    return "on" if state.ccFeature == nvml.NVML_CC_SYSTEM_FEATURE_ENABLED else "off"


def _profiles(nvml: Any, handle: Any) -> tuple[MigProfile, ...]:
    """Read all, by id. NVML counts them by constants: each GPU lacks some, an older driver the last ones."""
    found: list[MigProfile] = []
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            about = nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number)
        except nvml.NVMLError_NotSupported:
            continue
        except nvml.NVMLError_InvalidArgument:
            break
        found.append(_profile(nvml, handle, about))
    return tuple(sorted(found, key=lambda each: each.id))


def _profile(nvml: Any, handle: Any, about: Any) -> MigProfile:
    return MigProfile(
        id=about.id,
        name=str(about.name),
        memory_mib=about.memorySizeMB,
        slices=about.sliceCount,
        multiprocessors=about.multiprocessorCount,
        copy_engines=about.copyEngineCount,
        decoders=about.decoderCount,
        encoders=about.encoderCount,
        jpegs=about.jpegCount,
        ofas=about.ofaCount,
        instances=about.instanceCount,
        remaining=_if_told(nvml, lambda: nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(handle, about.id)),
        placements=_placements(nvml, handle, about.id),
    )


def _placements(nvml: Any, handle: Any, profile: int) -> tuple[tuple[int, int], ...]:
    ask = nvml.nvmlDeviceGetGpuInstancePossiblePlacements
    count = ctypes.c_uint(0)
    ask(handle, profile, None, ctypes.byref(count))
    places = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    if count.value:
        ask(handle, profile, places, ctypes.byref(count))
    return tuple((each.start, each.size) for each in places)


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _if_told(nvml: Any, ask: Callable[[], T]) -> T | None:
    """Return the answer; None where this GPU, its driver or its library's version has none."""
    try:
        return ask()
    except (
        nvml.NVMLError_NotSupported,
        nvml.NVMLError_FunctionNotFound,
        nvml.NVMLError_ArgumentVersionMismatch,
    ):
        return None
