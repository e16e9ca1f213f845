"""Volumes' keys: the right host, the right generation, now; and the log knows each of them."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from api.agents import Heartbeats
from orchestrator.controller import control, networks, tenants
from orchestrator.controller.checks import violations
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.loops import Loops
from orchestrator.keys.files import FileTenantKeys
from orchestrator.keys.wrapping import KeyUse, WrappedKey
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import ForbiddenError, KeysError
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.keys import WrappedKeyRow
from orchestrator.store.tables.tenants import TenantRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of
from tests.unit.controller.platform import Platform
from tests.unit.link.listener import eventually

_VOLUMES, _KEYS = table_of(VolumeRow), table_of(WrappedKeyRow)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return Keyring(FileTenantKeys(folder))


def assigned(platform: Platform) -> str:
    """An instance of acme's is in its host's assignment; its boot volume's id."""
    platform.create(platform.acme, "one")
    platform.schedule()
    platform.assignment()
    with platform.store.reading() as tx:
        return str(tx.scalar(select(_VOLUMES.c.id)))


def ask(platform: Platform, keyring: Keyring, volume: str, *, generation: int = 1, host: str = "") -> bytes:
    host = host or platform.host_id
    return keyring.hand_out(platform.store, Actor(kind="host", id=host), volume, generation)


def changed(platform: Platform, statement: object) -> None:
    with platform.store.unit_of_work(Actor(kind="controller", id="test")) as tx:
        tx.note(statement)


def test_a_host_gets_the_same_key_each_time_and_the_log_has_each(platform: Platform, keyring: Keyring):
    volume = assigned(platform)
    first = ask(platform, keyring, volume)
    assert len(base64.b64decode(first, validate=True)) == 32
    assert ask(platform, keyring, volume) == first
    with platform.store.reading() as tx:
        kept = tx.all(select(_KEYS))
        records = tx.all(
            select(table_of(AuditRecordRow)).where(table_of(AuditRecordRow).c.kind == "volume.key")
        )
        version = tx.scalar(
            select(table_of(TenantRow).c.key_version).where(table_of(TenantRow).c.name == "acme")
        )
    assert [(row.volume_id, row.generation, row.key_version) for row in kept] == [(volume, 1, 1)]
    assert version == 1
    assert [(row.stream, row.subject_id) for row in records] == [(platform.acme.tenant_id, volume)] * 2
    # What is kept opens nothing alone, and the log holds no key.
    assert base64.b64decode(first) not in kept[0].ciphertext
    assert all(first not in row.body for row in records)


def test_two_volumes_have_two_keys(platform: Platform, keyring: Keyring):
    first = assigned(platform)
    platform.create(platform.globex, "two")
    platform.schedule()
    platform.assignment()
    with platform.store.reading() as tx:
        second = tx.scalar(select(_VOLUMES.c.id).where(_VOLUMES.c.id != first))
    assert ask(platform, keyring, first) != ask(platform, keyring, second)


@pytest.mark.parametrize(
    "wrong", ["host", "generation", "volume", "deleting", "not placed", "volume deleting"]
)
def test_nobody_else_gets_it(platform: Platform, keyring: Keyring, wrong: str):
    volume = assigned(platform)
    assert ask(platform, keyring, volume)
    asked: dict[str, object] = {}
    if wrong == "host":
        asked["host"] = "hst_other"
    elif wrong == "generation":
        asked["generation"] = 2
    elif wrong == "volume":
        volume = "vol_other"
    elif wrong == "deleting":
        platform.ask(platform.acme, "remove", "one")
    elif wrong == "not placed":
        platform.create(platform.globex, "later")
        with platform.store.reading() as tx:
            volume = tx.scalar(select(_VOLUMES.c.id).where(_VOLUMES.c.id != volume))
    else:
        changed(platform, update(_VOLUMES).where(_VOLUMES.c.id == volume).values(state="deleting"))
    with pytest.raises(ForbiddenError) as refused:
        ask(platform, keyring, volume, **asked)  # type: ignore[arg-type]
    assert refused.value.code == "keys.not_assigned"


def test_a_key_that_is_lost_is_never_made_anew_over_data(platform: Platform, keyring: Keyring):
    volume = assigned(platform)
    ask(platform, keyring, volume)
    changed(platform, update(_VOLUMES).where(_VOLUMES.c.id == volume).values(state="in_use"))
    assert ask(platform, keyring, volume)
    changed(platform, delete(_KEYS))
    with pytest.raises(KeysError) as lost:
        ask(platform, keyring, volume)
    assert lost.value.code == "keys.lost"


def test_a_row_moved_to_another_volume_opens_nothing(platform: Platform, keyring: Keyring):
    first = assigned(platform)
    ask(platform, keyring, first)
    platform.create(platform.acme, "two")
    platform.schedule()
    platform.assignment()
    with platform.store.reading() as tx:
        second = tx.scalar(select(_VOLUMES.c.id).where(_VOLUMES.c.id != first))
    changed(platform, update(_KEYS).values(volume_id=second))
    with pytest.raises(KeysError) as refused:
        ask(platform, keyring, second)
    assert refused.value.code == "keys.not_opened"


class Meddling(FileTenantKeys):
    """Keys during whose opening something else happens, once."""

    def __init__(self, folder: Path, platform: Platform, meddle: Callable[[], object]) -> None:
        super().__init__(folder)
        self.platform, self.meddle = platform, meddle
        self.opened = 0

    def unwrap(self, use: KeyUse, wrapped: WrappedKey) -> bytes:
        self.opened += 1
        if self.opened == 1:
            # With a transaction of the hand-out open, SQLite would let no other write.
            self.meddle()
        return super().unwrap(use, wrapped)


@pytest.mark.parametrize("what", ["deleted", "fenced", "moved"])
def test_a_key_is_not_given_when_the_assignment_changed_meanwhile(
    platform: Platform, tmp_path: Path, what: str
):
    volume = assigned(platform)

    def meddle() -> None:
        if what == "deleted":
            platform.ask(platform.acme, "remove", "one")
        elif what == "fenced":
            changed(platform, update(table_of(HostRow)).values(state="fenced"))
        else:
            changed(platform, update(_VOLUMES).values(generation=2))

    keyring = Keyring(Meddling(tmp_path / "keys", platform, meddle))
    with pytest.raises(ForbiddenError) as refused:
        ask(platform, keyring, volume)
    assert refused.value.code == "keys.not_assigned"
    assert key_records(platform) == []


def test_two_first_hand_outs_at_once_give_one_key(platform: Platform, tmp_path: Path):
    volume = assigned(platform)
    others: list[bytes] = []
    plain = FileTenantKeys(tmp_path / "keys")
    keys = Meddling(tmp_path / "keys", platform, lambda: others.append(ask(platform, Keyring(plain), volume)))

    mine = ask(platform, Keyring(keys), volume)

    assert [mine] == others
    assert keys.opened == 2
    assert len(key_records(platform)) == 2


def test_no_key_is_given_that_could_not_be_audited(platform: Platform, keyring: Keyring, monkeypatch):
    volume = assigned(platform)
    real = UnitOfWork.record

    def failing(self, kind, *rest, **more):
        if kind == "volume.key":
            raise RuntimeError("the log is full")
        real(self, kind, *rest, **more)

    monkeypatch.setattr(UnitOfWork, "record", failing)
    with pytest.raises(RuntimeError):
        ask(platform, keyring, volume)


def key_records(platform: Platform) -> list[object]:
    table = table_of(AuditRecordRow)
    with platform.store.reading() as tx:
        return list(tx.all(select(table).where(table.c.kind == "volume.key")))


def deleted(platform: Platform, keyring: Keyring) -> str:
    """Acme used a key and is deleted now; its id."""
    ask(platform, keyring, assigned(platform))
    platform.ask(platform.acme, "remove", "one")
    platform.settle()
    with platform.store.unit_of_work(CONTROLLER) as tx:
        networks.remove(tx, platform.acme, "lan")
        tenants.remove(tx, "acme")
    return platform.acme.tenant_id


def broken(platform: Platform) -> tuple[str, ...]:
    with platform.store.reading() as tx:
        return violations(tx)


def left(tmp_path: Path, tenant_id: str) -> list[str]:
    return [path.name for path in (tmp_path / "keys").glob(f"{tenant_id}.*.key")]


def destructions(platform: Platform) -> int:
    table = table_of(AuditRecordRow)
    with platform.store.reading() as tx:
        return len(tx.all(select(table).where(table.c.kind == "tenant.keys_destroyed")))


def test_a_deleted_tenants_keys_are_destroyed_and_the_log_says_so(
    platform: Platform, keyring: Keyring, tmp_path: Path
):
    gone = deleted(platform, keyring)
    assert left(tmp_path, gone)
    assert [each[:2] for each in broken(platform)] == ["I9"]

    assert [keyring.destroy_deleted(platform.store) for _ in range(2)] == [1, 0]

    assert left(tmp_path, gone) == []
    assert broken(platform) == ()
    assert destructions(platform) == 1
    with pytest.raises(KeysError) as refused:
        FileTenantKeys(tmp_path / "keys").create(gone)
    assert refused.value.code == "keys.destroyed"


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("when", ["before", "half way", "after"])
def test_a_crash_around_the_destruction_is_made_up_for(
    platform: Platform, keyring: Keyring, tmp_path: Path, monkeypatch, when: str
):
    gone = deleted(platform, keyring)
    real = FileTenantKeys.destroy

    def dying(self, tenant: str) -> None:
        if when == "half way":
            (tmp_path / "keys" / f"{tenant}.destroyed").touch(mode=0o600)
        elif when == "after":
            real(self, tenant)
        raise Died

    monkeypatch.setattr(FileTenantKeys, "destroy", dying)
    with pytest.raises(Died):
        keyring.destroy_deleted(platform.store)
    monkeypatch.undo()
    assert any(each.startswith("I9") for each in broken(platform))

    Keyring(FileTenantKeys(tmp_path / "keys")).destroy_deleted(platform.store)

    assert left(tmp_path, gone) == []
    assert broken(platform) == ()
    assert destructions(platform) == 1


def test_the_loop_destroys_what_was_left_when_it_starts(platform: Platform, keyring: Keyring, tmp_path: Path):
    gone = deleted(platform, keyring)
    joined = control.join(platform.store, pepper=b"p" * 32, ca_fingerprint="sha256:x", keyring=keyring)
    loops = Loops(joined, Heartbeats(), "controller-1")
    loops.start()
    try:
        eventually(lambda: left(tmp_path, gone) == [] and broken(platform) == ())
    finally:
        loops.stop()


def test_the_keys_of_the_living_are_never_touched(platform: Platform, keyring: Keyring, tmp_path: Path):
    ask(platform, keyring, assigned(platform))
    assert keyring.destroy_deleted(platform.store) == 0
    assert left(tmp_path, platform.acme.tenant_id)


def test_a_key_that_cannot_be_destroyed_keeps_no_other(platform: Platform, keyring: Keyring, tmp_path: Path):
    gone = deleted(platform, keyring)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        networks.remove(tx, platform.globex, "lan")
        tenants.remove(tx, "globex")
    first, second = sorted((gone, platform.globex.tenant_id))
    (tmp_path / "keys" / f"{first}.9.key").mkdir(mode=0o700)
    with pytest.raises(KeysError):
        keyring.destroy_deleted(platform.store)
    with platform.store.reading() as tx:
        rows = tx.all(select(table_of(TenantRow)))
    assert [each.id for each in rows if each.keys_destroyed_ms is not None] == [second]


def test_a_destroyed_tenants_keys_open_nothing(platform: Platform, keyring: Keyring, tmp_path: Path):
    volume = assigned(platform)
    ask(platform, keyring, volume)
    for _ in range(2):
        FileTenantKeys(tmp_path / "keys").destroy(platform.acme.tenant_id)
    with pytest.raises(KeysError) as refused:
        ask(platform, keyring, volume)
    assert refused.value.code == "keys.destroyed"
