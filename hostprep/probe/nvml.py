"""GPUs as NVIDIA's own library counts them, through nvidia-ml-py.

Only GPUs that the nvidia driver owns are there: one on vfio-pci is not NVML's to see. A host without the
library or driver is no fault; the inventory then says why it is empty. Called for evidence; never needed to
place or bind.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from orchestrator.model.errors import HostError
from orchestrator.model.pci import parse_pci_address


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU; None where this GPU does not tell."""

    uuid: str
    name: str
    #: Board serial number; not the PCIe one.
    serial: str | None
    #: In sysfs' form.
    address: str
    #: Whether MIG is on now; None on GPUs that cannot.
    mig: bool | None


@dataclass(frozen=True)
class NvmlInventory:
    """What NVML said."""

    gpus: tuple[NvmlGpu, ...]
    #: Why NVML could not be asked; empty when it answered.
    reason: str = ""


def read_gpus() -> NvmlInventory:
    """Ask NVML for all its GPUs, in its order.

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
    try:
        return NvmlInventory(tuple(_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())))
    except (nvml.NVMLError, ValueError) as exc:
        raise HostError("nvml.failed", f"NVML failed while it listed GPUs: {exc}") from exc
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int) -> NvmlGpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mode = _if_supported(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return NvmlGpu(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        serial=_if_supported(nvml, lambda: str(nvml.nvmlDeviceGetSerial(handle))),
        address=str(parse_pci_address(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        mig=None if mode is None else mode[0] == nvml.NVML_DEVICE_MIG_ENABLE,
    )


def _if_supported(nvml: Any, ask: Any) -> Any:
    try:
        return ask()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None
