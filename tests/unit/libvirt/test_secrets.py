"""Secrets: ephemeral and private by definition, found by name, never half made; the test driver has none."""

from __future__ import annotations

import re
import traceback

import libvirt
import pytest
from lxml import etree

from orchestrator.agent.libvirt.readback import parse
from orchestrator.agent.libvirt.secrets import Secrets, secret_xml
from orchestrator.agent.libvirt.xml.disks import secret_uuid
from orchestrator.model.errors import ConflictError, HostError
from orchestrator.model.observed import ObservedSecret
from tests.unit.libvirt.conftest import refusal

SCHEMA = "/usr/share/libvirt/schemas/secret.rng"
PASSPHRASE = b"Q0FOQVJZ-not-to-be-told"


class Held:
    """One secret as libvirt's bindings show it."""

    def __init__(self, store: Store, definition: etree._Element) -> None:
        self._store = store
        self.definition = definition
        self.value: bytes | None = None

    def usageType(self) -> int:
        kinds = {"volume": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, "ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH}
        return kinds[self.definition.find("usage").get("type")]

    def usageID(self) -> str:
        return self.definition.find("usage")[0].text

    def setValue(self, value: bytes, flags: int) -> None:
        if self._store.refuses is not None:
            raise self._store.refuses
        self.value = value

    def undefine(self) -> None:
        del self._store.secrets[self.definition.findtext("uuid")]


class Store:
    """libvirt's secret driver, as far as we use it; stands for a connection, too."""

    def __init__(self) -> None:
        self.secrets: dict[str, Held] = {}
        self.refuses: libvirt.libvirtError | None = None

    def call(self, work):
        return work(self)

    def secretDefineXML(self, text: str, flags: int) -> Held:
        definition = parse(text)
        return self.secrets.setdefault(definition.findtext("uuid"), Held(self, definition))

    def secretLookupByUUIDString(self, uuid: str) -> Held:
        if uuid not in self.secrets:
            raise refusal(libvirt.VIR_ERR_NO_SECRET, "no secret with matching uuid")
        return self.secrets[uuid]

    def listAllSecrets(self, flags: int) -> list[Held]:
        return list(self.secrets.values())


@pytest.fixture
def store() -> Store:
    return Store()


def test_definition_is_ephemeral_private_and_valid():
    definition = parse(secret_xml("vol_a"))
    assert (definition.get("ephemeral"), definition.get("private")) == ("yes", "yes")
    assert definition.findtext("uuid") == secret_uuid("vol_a")
    assert definition.findtext("usage/volume") == "/bulkhead/vol_a"
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    assert schema.validate(definition), schema.error_log
    definition.set("ephemeral", "perhaps")
    assert not schema.validate(definition)


def test_markup_in_a_volumes_name_stays_text():
    definition = parse(secret_xml("</volume><x/>"))
    assert definition.findtext("usage/volume") == "/bulkhead/</volume><x/>"


def test_put_holds_the_value_under_the_uuid_that_the_disk_names(store):
    Secrets(store).put("vol_a", PASSPHRASE)
    Secrets(store).put("vol_a", PASSPHRASE)
    assert {uuid: held.value for uuid, held in store.secrets.items()} == {secret_uuid("vol_a"): PASSPHRASE}
    assert PASSPHRASE not in etree.tostring(store.secrets[secret_uuid("vol_a")].definition)


def test_list_names_ours_sorted_and_nobody_elses(store):
    for volume in ("vol_b", "vol_a"):
        Secrets(store).put(volume, PASSPHRASE)
    for number, usage in enumerate(("volume", "ceph")):
        inside = "<volume>/somebody/else</volume>" if usage == "volume" else "<name>/bulkhead/vol_c</name>"
        store.secretDefineXML(
            f"<secret><uuid>{number}</uuid><usage type='{usage}'>{inside}</usage></secret>", 0
        )
    assert Secrets(store).list() == (ObservedSecret("vol_a"), ObservedSecret("vol_b"))


def test_drop_takes_it_away_and_again_is_fine(store):
    Secrets(store).put("vol_a", PASSPHRASE)
    Secrets(store).put("vol_b", PASSPHRASE)
    Secrets(store).drop("vol_a")
    Secrets(store).drop("vol_a")
    assert Secrets(store).list() == (ObservedSecret("vol_b"),)


def test_secret_that_gets_no_value_does_not_stay(store):
    store.refuses = refusal(libvirt.VIR_ERR_INTERNAL_ERROR, "cannot hold it")
    with pytest.raises(HostError, match=re.escape("[secret.put_failed]")) as caught:
        Secrets(store).put("vol_a", PASSPHRASE)
    assert store.secrets == {}
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.as_dict())
    assert PASSPHRASE.decode() not in told


def test_other_failures_of_drop_are_told(store, monkeypatch):
    def fail(_self, uuid):
        raise refusal(libvirt.VIR_ERR_OPERATION_INVALID, "not now")

    monkeypatch.setattr(Store, "secretLookupByUUIDString", fail)
    with pytest.raises(ConflictError, match=re.escape("[secret.drop_conflict]")):
        Secrets(store).drop("vol_a")


def test_driver_without_secrets_says_so(machine):
    for act in (
        lambda: machine.hypervisor.secrets(),
        lambda: machine.hypervisor.put_secret("vol_a", PASSPHRASE),
        lambda: machine.hypervisor.drop_secret("vol_a"),
    ):
        with pytest.raises(HostError, match=r"\[secret\.(list|put|drop)_failed\]") as caught:
            act()
        assert not caught.value.retryable
