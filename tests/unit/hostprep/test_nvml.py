"""The NVML inventory: captures of real GPUs replayed, single answers turned, and the real binding alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from hostprep.probe.nvml import Ecc, Fabric, MigProfile, NvmlGpu, NvmlInventory, RemappedRows, read_gpus
from orchestrator.model.errors import HostError
from tests.fixtures.nvml import capture
from tests.fixtures.nvml.replay import CAPTURES, Replay, load

Install = Callable[[dict[str, Any]], Replay]
NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH = 3, 13, 15, 25
H100 = "h100-80gb-hbm3"
SEVEN = tuple((start, 1) for start in range(7))
#: By id: placements and how many fit, the same on all GPUs of seven slices.
PLACES: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {
    0: (1, ((0, 8),)),
    5: (1, ((0, 4),)),
    9: (2, ((0, 4), (4, 4))),
    14: (3, ((0, 2), (2, 2), (4, 2))),
    15: (4, ((0, 2), (2, 2), (4, 2), (6, 2))),
    19: (7, SEVEN),
    20: (1, SEVEN),
}
#: By capture and id: name and memory in MiB.
SIZES = {
    H100: {
        0: ("MIG 7g.80gb", 81152),
        5: ("MIG 4g.40gb", 40448),
        9: ("MIG 3g.40gb", 40448),
        14: ("MIG 2g.20gb", 20096),
        15: ("MIG 1g.20gb", 20096),
        19: ("MIG 1g.10gb", 9984),
        20: ("MIG 1g.10gb+me", 9984),
    },
    "h200": {
        0: ("MIG 7g.141gb", 143360),
        5: ("MIG 4g.71gb", 71424),
        9: ("MIG 3g.71gb", 71424),
        14: ("MIG 2g.35gb", 33280),
        15: ("MIG 1g.35gb", 33280),
        19: ("MIG 1g.18gb", 16384),
        20: ("MIG 1g.18gb+me", 16384),
    },
}
#: By id: compute slices, multiprocessors, copy engines, decoders, encoders, JPEG engines, OFAs.
ENGINES = {
    0: (7, 132, 8, 7, 0, 7, 1),
    5: (4, 64, 4, 4, 0, 4, 0),
    9: (3, 60, 3, 3, 0, 3, 0),
    14: (2, 32, 2, 2, 0, 2, 0),
    15: (1, 26, 1, 1, 0, 1, 0),
    19: (1, 16, 1, 1, 0, 1, 0),
    20: (1, 16, 1, 1, 0, 1, 1),
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(said: dict[str, Any]) -> Replay:
        made = Replay(said)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        return made

    return put


def expected(name: str) -> NvmlGpu:
    """What a capture must give, by hand from what nvidia-smi showed on that machine."""
    title, memory_mib, vbios, inforom = {
        H100: ("NVIDIA H100 80GB HBM3", 81559, "96.00.DA.00.0C", "G520.0200.00.05"),
        "h200": ("NVIDIA H200", 143771, "96.00.A5.00.1A", "G520.0282.02.02"),
    }[name]
    return NvmlGpu(
        uuid="GPU-00000000-0000-4000-8000-000000000001",
        name=title,
        serial="0000000000001",
        address="0000:00:06.0",
        mig=False,
        mig_pending=False,
        memory_mib=memory_mib,
        ecc=Ecc(True, True),
        remapped_rows=RemappedRows(0, 0, False, False),
        vbios=vbios,
        inforom=inforom,
        recovery="none",
        fabric=None,
        mig_profiles=tuple(
            MigProfile(id_, title, memory, *ENGINES[id_], PLACES[id_][0], *PLACES[id_])
            for id_, (title, memory) in sorted(SIZES[name].items())
        ),
    )


def turned(change: Callable[[dict[str, Any]], None], name: str = H100) -> dict[str, Any]:
    said = load(name)
    change(said["gpus"][0])
    return said


def answer(function: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda gpu: gpu["get"].__setitem__(function, value)


def field(name: str, *value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda gpu: gpu["fields"].__setitem__(name, list(value))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_what_a_real_gpu_said(name: str, install: Install) -> None:
    nvml = install(load(name))
    assert read_gpus() == NvmlInventory((expected(name),), "", "580.159.04", "off")
    assert nvml.running == 0


@pytest.mark.parametrize("name", CAPTURES)
def test_every_capture_can_be_read_and_hangs_together(name: str, install: Install) -> None:
    install(load(name))
    found = read_gpus()
    assert found.gpus
    assert (found.reason, bool(found.driver)) == ("", True)
    for gpu in found.gpus:
        for each in gpu.mig_profiles or ():
            assert each.instances >= 1
            assert len(each.placements) >= each.instances
            assert each.memory_mib * each.instances <= (gpu.memory_mib or 0)
            assert len({size for _, size in each.placements}) == 1


@pytest.mark.parametrize(
    ("change", "fact", "value"),
    [
        (answer("nvmlDeviceGetMigMode", [1, 0]), "mig", True),
        (answer("nvmlDeviceGetMigMode", [0, 1]), "mig", False),
        (answer("nvmlDeviceGetMigMode", [0, 1]), "mig_pending", True),
        (answer("nvmlDeviceGetEccMode", [1, 0]), "ecc", Ecc(True, False)),
        (answer("nvmlDeviceGetRemappedRows", [1, 2, 1, 0]), "remapped_rows", RemappedRows(1, 2, True, False)),
        (answer("nvmlDeviceGetRemappedRows", [0, 9, 0, 1]), "remapped_rows", RemappedRows(0, 9, False, True)),
        (answer("nvmlDeviceGetVbiosVersion", "96.00.DA.00.0D"), "vbios", "96.00.DA.00.0D"),
        (answer("nvmlDeviceGetInforomImageVersion", "x"), "inforom", "x"),
        (answer("nvmlDeviceGetMemoryInfo", {"free": 0, "total": 5 << 20, "used": 0}), "memory_mib", 5),
        (field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 0, 1, 1), "recovery", "gpu_reset"),
        (field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 0, 1, 7), "recovery", "system_reboot"),
        (field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 0, 1, 99), "recovery", "99"),
        (field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", NOT_SUPPORTED, 0, None), "recovery", None),
        (field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 2, 0, None), "recovery", None),
    ],
)
def test_each_fact_follows_its_answer(
    change: Callable[[dict[str, Any]], None], fact: str, value: object, install: Install
) -> None:
    install(turned(change))
    [gpu] = read_gpus().gpus
    assert getattr(gpu, fact) == value


FABRIC = {"clusterUuid": [0] * 16, "status": 0, "cliqueId": 4, "state": 3, "healthMask": 2}


@pytest.mark.parametrize(
    ("change", "fabric"),
    [
        ({}, Fabric("completed", 0, 4, 2)),
        ({"state": 2}, Fabric("in_progress", 0, 4, 2)),
        ({"state": 3, "status": 999}, Fabric("completed", 999, 4, 2)),
        ({"state": 9}, Fabric("9", 0, 4, 2)),
        ({"state": 0}, None),
    ],
)
def test_the_fabric_state(change: dict[str, int], fabric: Fabric | None, install: Install) -> None:
    install(turned(lambda gpu: gpu.__setitem__("fabric", FABRIC | change)))
    assert read_gpus().gpus[0].fabric == fabric


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"ccFeature": 1, "devToolsMode": 0, "environment": 2}, "on"),
        ({"ccFeature": 1, "devToolsMode": 1, "environment": 2}, "devtools"),
        ({"ccFeature": 0, "devToolsMode": 0, "environment": 0}, "off"),
        ({"error": NOT_SUPPORTED}, None),
        ({"error": FUNCTION_NOT_FOUND}, None),
    ],
)
def test_confidential_computing(state: dict[str, int], said: str | None, install: Install) -> None:
    capture = load(H100)
    capture["system"]["nvmlSystemGetConfComputeState"] = state
    install(capture)
    assert read_gpus().confidential == said


OPTIONAL = {
    "nvmlDeviceGetSerial": {"serial"},
    "nvmlDeviceGetMigMode": {"mig", "mig_pending", "mig_profiles"},
    "nvmlDeviceGetEccMode": {"ecc"},
    "nvmlDeviceGetRemappedRows": {"remapped_rows"},
    "nvmlDeviceGetMemoryInfo": {"memory_mib"},
    "nvmlDeviceGetVbiosVersion": {"vbios"},
    "nvmlDeviceGetInforomImageVersion": {"inforom"},
}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND, VERSION_MISMATCH])
@pytest.mark.parametrize("function", OPTIONAL)
def test_what_a_gpu_does_not_tell_is_none_and_takes_nothing_else_along(
    function: str, code: int, install: Install
) -> None:
    install(turned(answer(function, {"error": code})))
    [gpu] = read_gpus().gpus
    changed = {key for key, value in vars(gpu).items() if value != getattr(expected(H100), key)}
    assert changed == OPTIONAL[function]
    assert all(getattr(gpu, key) is None for key in changed)


MUST_TELL = ("nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo")


@pytest.mark.parametrize("function", [*OPTIONAL, *MUST_TELL])
def test_a_lost_gpu_is_not_an_absent_one(function: str, install: Install) -> None:
    nvml = install(turned(answer(function, {"error": GPU_IS_LOST})))
    with pytest.raises(HostError, match=r"nvml\.failed.*GPU 0 of 1.*GPU is lost"):
        read_gpus()
    assert nvml.running == 0


@pytest.mark.parametrize(
    "lose",
    [
        field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", GPU_IS_LOST, 0, None),
        lambda gpu: gpu.__setitem__("fabric", {"error": GPU_IS_LOST}),
        lambda gpu: gpu["profiles"].__setitem__("0x3", {"error": GPU_IS_LOST}),
        lambda gpu: gpu["placements"]["14"].__setitem__("placements", {"error": GPU_IS_LOST}),
        lambda gpu: gpu["placements"]["14"].__setitem__("remaining", {"error": GPU_IS_LOST}),
    ],
)
def test_a_gpu_that_is_lost_half_way_is_told_too(
    lose: Callable[[dict[str, Any]], None], install: Install
) -> None:
    install(turned(lose))
    with pytest.raises(HostError, match=r"nvml\.failed.*GPU is lost"):
        read_gpus()


def test_the_second_of_two_is_named_when_it_fails(install: Install) -> None:
    said = load(H100)
    said["gpus"].append(load("h200")["gpus"][0])
    install(said)
    assert [gpu.name for gpu in read_gpus().gpus] == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    said["gpus"][1]["get"]["nvmlDeviceGetUUID"] = {"error": GPU_IS_LOST}
    install(said)
    with pytest.raises(HostError, match="GPU 1 of 2"):
        read_gpus()


def test_an_older_driver_that_ends_its_profiles_early(install: Install) -> None:
    """It answers Invalid Argument past the last constant it knows; those before it count."""
    install(turned(lambda gpu: gpu["profiles"].__setitem__("0x7", {"error": 2})))
    assert [each.id for each in read_gpus().gpus[0].mig_profiles or ()] == [0, 5, 9, 14, 19]


def test_a_profile_without_a_place_left_has_none(install: Install) -> None:
    install(turned(lambda gpu: gpu["placements"].__setitem__("0", {"placements": [], "remaining": 0})))
    whole = (read_gpus().gpus[0].mig_profiles or ())[0]
    assert (whole.id, whole.placements, whole.remaining) == (0, (), 0)


def test_a_library_that_does_not_start_is_a_reason(install: Install) -> None:
    nvml = install(load(H100))

    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    nvml.nvmlInit = fails  # type: ignore[method-assign]
    found = read_gpus()
    assert found.gpus == ()
    assert "Driver Not Loaded" in found.reason


def test_a_library_that_fails_before_any_gpu(install: Install) -> None:
    said = load(H100)
    said["system"]["nvmlSystemGetDriverVersion"] = {"error": 999}
    install(said)
    with pytest.raises(HostError, match=r"nvml\.failed.*before it listed"):
        read_gpus()


def test_a_host_without_the_binding_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpus() == NvmlInventory((), "nvidia-ml-py is not installed")


def test_the_real_binding_without_its_library_gives_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*_args: object) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    found = read_gpus()
    assert found.gpus == ()
    assert "not found" in found.reason.lower()


def test_a_replay_answers_nothing_that_was_not_captured() -> None:
    nvml = Replay(load(H100))
    nvml.nvmlInit()
    with pytest.raises(AssertionError, match="was not captured"):
        nvml.nvmlDeviceGetNoSuchThing(0)
    with pytest.raises(AssertionError, match="was not captured"):
        nvml.nvmlEventSetCreate()


# -- the program that captures, on a binding that it can be run on here: the replay itself


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_of_a_replay_is_the_capture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again(load(name), monkeypatch) == load(name)


def again(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    nvml = Replay(said)
    nvml.nvmlInit()
    gpus = said["gpus"]
    for name in gpus[0]["get"]:
        monkeypatch.setattr(nvml, name, _takes_a_handle(nvml, name), raising=False)
    for name in said["system"]:
        monkeypatch.setattr(nvml, name, _takes_nothing(nvml, name), raising=False)
    for name in gpus[0]["fields"]:
        monkeypatch.setattr(nvml, name, getattr(pynvml, name), raising=False)
    monkeypatch.setattr(capture.importlib.metadata, "version", lambda _name: said["binding"])
    return json.loads(capture.encode(capture.capture(nvml)))


def _takes_a_handle(nvml: Replay, name: str) -> Any:
    def ask(handle: int) -> Any:
        return nvml.__getattr__(name)(handle)

    return ask


def _takes_nothing(nvml: Replay, name: str) -> Any:
    def ask() -> Any:
        return nvml.__getattr__(name)()

    return ask


def test_what_names_one_gpu_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    said = load(H100)
    own = {
        "nvmlDeviceGetUUID": "GPU-2b2a7c1e-1111-4222-8333-0123456789ab",
        "nvmlDeviceGetSerial": "1650123456789",
        "nvmlDeviceGetPdi": 11223344556677889900,
    }
    said["gpus"][0]["get"] |= own
    found = again(said, monkeypatch)
    assert found == load(H100)
    assert not any(str(value) in capture.encode(found) for value in own.values())


def test_a_value_that_would_be_left_somewhere_else_stops_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    said = load(H100)
    said["gpus"][0]["get"] |= {
        "nvmlDeviceGetSerial": "1650123456789",
        "nvmlDeviceGetName": "H100 1650123456789",
    }
    with pytest.raises(SystemExit, match="1 values that name this device"):
        again(said, monkeypatch)


def test_what_may_name_people_or_machines_is_not_asked() -> None:
    asked = capture.functions(pynvml, "nvmlDeviceGet", 1)
    assert len(asked) > 80
    assert not [name for name in asked if "Process" in name or "Hostname" in name or "Certificate" in name]
