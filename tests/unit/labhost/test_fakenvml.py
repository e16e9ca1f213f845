"""The fake libnvidia-ml.so.1, compiled and asked through the real nvidia-ml-py, answers as real GPUs did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

import images.labhost
from tests.fixtures.nvml.replay import load

SOURCE = Path(images.labhost.__file__).parent / "fakenvml" / "fakenvml.c"
ROOT = SOURCE.parents[3]
#: Of the file that the fake is configured by.
MODELS = {"h100-80": "h100-80gb-hbm3", "h200": "h200"}
#: As the recipe compiles it.
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1")
PROGRAM = """
import ctypes, dataclasses, json, sys
import pynvml
from hostprep.probe.nvml import read_gpus
from tests.fixtures.nvml import capture
said = {"inventory": dataclasses.asdict(read_gpus())}
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
said["profiles"] = capture.profiles(pynvml, handle)
said["first"] = capture.ask(pynvml, pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, 0x9, 1)
said["placements"] = capture.placements(pynvml, handle)
about = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
ask = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuInstanceProfileInfoV")
said["twice"] = [ask(handle, 0, ctypes.byref(about)), about.version, ask(handle, 0, ctypes.byref(about))]
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    file = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", *FLAGS, "-o", file, SOURCE], check=True)
    return folder


def ask(library: Path, config: str) -> dict[str, Any]:
    file = library / "fakenvml.conf"
    file.write_text(config)
    more = {"LD_LIBRARY_PATH": str(library), "FAKENVML_CONF": str(file), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | more, check=True, stdout=subprocess.PIPE, timeout=60
    )
    return json.loads(ran.stdout)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_profiles_placements_and_refusals_are_those_of_the_real_gpu(model: str, library: Path) -> None:
    said = ask(library, f"0000:21:00.0 off model={model} NVIDIA Some GPU\n")
    [real] = load(MODELS[model])["gpus"]
    assert said["profiles"] == real["profiles"]
    assert said["placements"] == real["placements"]
    assert said["first"] == {
        name: value for name, value in real["profiles"]["0x9"].items() if name not in ("name", "version")
    }
    [gpu] = said["inventory"]["gpus"]
    assert (gpu["name"], gpu["address"], gpu["mig"]) == ("NVIDIA Some GPU", "0000:21:00.0", False)
    assert gpu["memory_mib"] == real["get"]["nvmlDeviceGetMemoryInfo"]["total"] >> 20
    assert [each["id"] for each in gpu["mig_profiles"]] == [0, 5, 9, 14, 15, 19, 20]


def test_a_struct_comes_back_without_its_version_and_is_refused_when_used_again(library: Path) -> None:
    said = ask(library, "0000:21:00.0 on model=h200 NVIDIA H200\n")
    assert said["twice"] == [pynvml.NVML_SUCCESS, 0, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH]


def test_without_a_model_it_is_an_a100_and_without_mig_it_has_no_profile(library: Path) -> None:
    said = ask(library, "0000:21:00.0 off Fake GPU\n0000:22:00.0 none model=h200 Other\n")
    whole, other = said["inventory"]["gpus"]
    assert (whole["name"], whole["memory_mib"]) == ("Fake GPU", 40960)
    sizes = {each["id"]: each["memory_mib"] for each in whole["mig_profiles"]}
    # gpu-isolation.md: what NVML says of an A100 with 40 GB, in MiB.
    assert sizes == {19: 4864, 20: 4864, 15: 9856, 14: 9856, 9: 19968, 5: 19968, 0: 40192}
    assert (other["name"], other["mig"], other["mig_profiles"]) == ("Other", None, None)


def test_what_the_fake_lacks_is_none_and_fails_nothing(library: Path) -> None:
    [gpu] = ask(library, "0000:21:00.0 off Fake GPU\n")["inventory"]["gpus"]
    assert [gpu[name] for name in ("ecc", "remapped_rows", "vbios", "recovery", "fabric")] == [None] * 5
