"""Long ones, by `make soak`: a VM comes and goes many times, and the host is as before each time."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.lab import kernel_view
from tests.lab.test_3_faults import assert_nothing_leaked

pytestmark = pytest.mark.soak

CYCLES = 20


@pytest.mark.timeout(7200)
def test_a_vm_comes_and_goes_twenty_times_and_leaves_nothing(lab_host):
    lab_host.session.apply(lab_host.gone(lab_host.all))
    free = hugepages(lab_host)
    created, deleted = [], []
    for generation in range(lab_host.revision + 1, lab_host.revision + 1 + CYCLES):
        volumes = tuple(v.model_copy(update={"generation": generation}) for v in lab_host.acme.volumes)
        instance = lab_host.acme.model_copy(update={"generation": generation, "volumes": volumes})

        began = time.monotonic()
        report = lab_host.session.apply(lab_host.order([instance]))
        created.append(time.monotonic() - began)
        assert report["ok"], report["instances"][0]["error"]
        assert lab_host.session.ask(instance.id, {"op": "report"})["report"]["hostname"] == instance.name

        began = time.monotonic()
        gone = lab_host.session.apply(lab_host.gone([instance]))
        deleted.append(time.monotonic() - began)
        assert gone["ok"], gone["absent"]
        assert_nothing_leaked(lab_host, [])
        assert hugepages(lab_host) == free
        assert kernel_view.driver(lab_host, instance.devices[0].address) == "bochs-drm"
        print(f"cycle {len(created)}: created in {created[-1]:.0f} s, deleted in {deleted[-1]:.0f} s")
    for name, values in (("create", created), ("delete", deleted)):
        print(f"{name}: mean {statistics.mean(values):.1f} s, longest {max(values):.1f} s")


def hugepages(lab_host) -> str:
    return lab_host.sh("cat /sys/devices/system/node/node*/hugepages/hugepages-2048kB/free_hugepages")
