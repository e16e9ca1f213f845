"""Whole definitions: as committed, valid for libvirt, the same for the same input, read back as ordered."""

from __future__ import annotations

import os
import subprocess
import sys

import libvirt
import pytest
from lxml import etree

from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.lint import lint
from orchestrator.agent.libvirt.readback import observed, parse
from orchestrator.agent.libvirt.xml.domain import build
from orchestrator.model.observed import DomainState
from tests.unit.libvirt.golden import HERE, golden
from tests.unit.libvirt.specs import SPECS, instance, launch

#: Debian 12: package libvirt0; Debian 13: libvirt-common, which libvirt0 needs.
SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
NAMES = sorted(SPECS)


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("name", NAMES)
def test_definition_is_the_committed_one(name):
    assert build(*SPECS[name]) == golden(name)


def test_every_golden_file_belongs_to_a_spec():
    assert sorted(path.stem for path in HERE.glob("*.xml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_definition_is_valid_for_libvirts_schema(schema, name):
    assert schema.validate(parse(golden(name))), schema.error_log


@pytest.mark.parametrize(
    ("path", "attribute", "value"),
    [("memory", "unit", "furlong"), ("devices/hostdev", "managed", "perhaps"), ("os/type", "arch", "é")],
)
def test_schema_refuses_what_libvirt_does_not_know(schema, path, attribute, value):
    domain = parse(golden("one_gpu_bios"))
    domain.find(path).set(attribute, value)
    assert not schema.validate(domain)


def test_keyboard_switch_is_written_only_where_libvirt_knows_it(schema):
    spec, _ = SPECS["one_gpu_bios"]
    with_switch = parse(build(spec, HostFeatures(ps2_switch=True)))
    assert with_switch.find("features/ps2").get("state") == "off"
    assert parse(golden("one_gpu_bios")).find("features/ps2") is None
    # The version that `detect` gates on is the one whose schema accepts it.
    assert schema.validate(with_switch) == (libvirt.getVersion() >= 10_007_000)


@pytest.mark.parametrize("name", NAMES)
def test_lint_has_nothing_to_say(name):
    assert lint(golden(name)) == ()


def test_same_input_gives_the_same_bytes_whatever_the_hash_seed():
    script = (
        "from tests.unit.libvirt.specs import SPECS\n"
        "from orchestrator.agent.libvirt.xml.domain import build\n"
        "print(''.join(build(*SPECS[n]) for n in sorted(SPECS)), end='')"
    )
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "".join(golden(name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_read_back_equals_the_spec(name):
    spec, _ = SPECS[name]
    seen = observed(parse(golden(name)), DomainState.RUNNING, 4711)
    ordered = spec.instance
    assert (seen.instance, seen.tenant, seen.deployment) == (ordered.id, ordered.tenant, spec.deployment)
    assert (seen.generation, seen.digest, seen.uid) == (ordered.generation, spec.digest(), spec.uid)
    assert (seen.state, seen.pid) == (DomainState.RUNNING, 4711)
    assert seen.cpus == {pin.host_cpu for pin in ordered.cpus.pins}
    assert seen.devices == tuple(device.address for device in ordered.devices)
    assert seen.volumes == tuple(volume.id for volume in ordered.volumes)
    assert seen.ports == tuple(port.id for port in ordered.ports)


def test_definition_never_holds_seed_or_key():
    text = build(launch(instance(seed={"user_data": "CANARY"})), HostFeatures())
    assert text == golden("one_gpu_bios")
    secret = parse(text).find("devices/disk/source/encryption/secret")
    assert (sorted(secret.attrib), secret.text, len(secret)) == (["type", "uuid"], None, 0)
