"""The NVML inventory through a stand-in for nvidia-ml-py, and through the real one without its library."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from hostprep.probe.nvml import NvmlGpu, NvmlInventory, read_gpus
from orchestrator.model.errors import HostError


class NVMLError(Exception):
    pass


class NotSupportedError(NVMLError):
    pass


class FunctionNotFoundError(NVMLError):
    pass


class FakeNvml(SimpleNamespace):
    """Two GPUs: one with MIG on, one that neither tells a serial nor can do MIG."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupportedError
    NVMLError_FunctionNotFound = FunctionNotFoundError
    NVML_DEVICE_MIG_ENABLE = 1
    broken: Exception | None = None
    running = 0

    def nvmlInit(self) -> None:
        self.running += 1

    def nvmlShutdown(self) -> None:
        self.running -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if self.broken is not None and index == 1:
            raise self.broken
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Stand-in"

    def nvmlDeviceGetSerial(self, handle: int) -> str:
        if handle == 1:
            raise NotSupportedError
        return "16500001"

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(busId=f"00000000:{handle:X}A:00.0")

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if handle == 1:
            raise FunctionNotFoundError
        return [1, 0]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_gpus_with_what_they_tell(nvml: FakeNvml) -> None:
    assert read_gpus() == NvmlInventory(
        (
            NvmlGpu("GPU-0", "Stand-in", "16500001", "0000:0a:00.0", True),
            NvmlGpu("GPU-1", "Stand-in", None, "0000:1a:00.0", None),
        )
    )
    assert nvml.running == 0


def test_mig_mode_is_the_one_that_holds_now(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetMigMode", lambda _self, _handle: [0, 1])
    assert [gpu.mig for gpu in read_gpus().gpus] == [False, False]


def test_a_library_that_does_not_start_is_a_reason(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_self: FakeNvml) -> None:
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setattr(FakeNvml, "nvmlInit", fails)
    found = read_gpus()
    assert found.gpus == ()
    assert "Driver Not Loaded" in found.reason


def test_a_gpu_that_fails_is_not_an_absent_one(nvml: FakeNvml) -> None:
    nvml.broken = NVMLError("GPU is lost")
    with pytest.raises(HostError, match=r"nvml\.failed.*GPU is lost"):
        read_gpus()
    assert nvml.running == 0


def test_a_host_without_the_binding_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpus() == NvmlInventory((), "nvidia-ml-py is not installed")


def test_the_real_binding_without_its_library_gives_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def no_library(*_args: object) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    found = read_gpus()
    assert found.gpus == ()
    assert "not found" in found.reason.lower()
