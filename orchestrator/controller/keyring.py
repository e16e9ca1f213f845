"""Volumes' keys: made when their host first asks, wrapped by their tenant's key, told to nobody else.

A host gets the key of exactly the generation of a volume that an instance in its assignment has. Keys are
read with no transaction open; then each hand-out is written into the tenant's audit log, if the assignment is
still the same, and only then the key is given. The agents' app calls it with the host of a certificate. Keeps
no key.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select, update

from orchestrator.controller.assignments import OUTSIDE
from orchestrator.keys.backend import TenantKeys
from orchestrator.keys.wrapping import KeyUse, Sealed, WrappedKey, new_key, passphrase, seal, unseal
from orchestrator.model.actor import CONTROLLER, Actor
from orchestrator.model.errors import BulkheadError, ConflictError, ForbiddenError, KeysError
from orchestrator.model.states import HostState, TenantState, VolumeState
from orchestrator.store.store import Store
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.keys import WrappedKeyRow
from orchestrator.store.tables.tenants import TenantRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_VOLUMES, _INSTANCES, _HOSTS = table_of(VolumeRow), table_of(InstanceRow), table_of(HostRow)
_KEYS, _TENANTS = table_of(WrappedKeyRow), table_of(TenantRow)
#: Deleted tenants whose keys may still be there.
_UNDONE = (_TENANTS.c.state == TenantState.DELETED, _TENANTS.c.keys_destroyed_ms.is_(None))
#: A second try follows when two calls made a volume's key at once; there is no reason for more.
_TRIES = 3


class Keyring:
    """Hands out volumes' keys, seals and opens texts.

    Args:
        keys: where the tenants' keys lie.
    """

    def __init__(self, keys: TenantKeys) -> None:
        self._keys = keys

    def hand_out(self, store: Store, actor: Actor, volume_id: str, generation: int) -> bytes:
        """Return the LUKS passphrase of a volume to the host that has to open it now.

        Raises:
            ForbiddenError: `keys.not_assigned`: whatever is the matter, the host is told no more.
            KeysError: `keys.lost`, `keys.destroyed`, `keys.not_opened`.
        """
        for _ in range(_TRIES):
            with store.reading() as tx:
                volume = _assigned(tx, actor.id, volume_id, generation)
                kept = _kept(tx, volume_id, generation)
            use = KeyUse(volume.tenant_id, volume_id, generation)
            wrapped = kept or self._make(use, volume.state)
            opened = passphrase(self._keys.unwrap(use, wrapped))
            with store.unit_of_work(actor) as tx:
                if _audited(tx, actor.id, use, wrapped, new=kept is None):
                    return opened
        raise ConflictError("keys.changed", f"the key of {volume_id} changes all the time", hint="ask again")

    def seal(self, use: KeyUse, text: bytes) -> tuple[WrappedKey, Sealed]:
        """Encrypt a text under a key of its own, and that key under its tenant's.

        Raises:
            KeysError: `keys.destroyed`.
        """
        data_key = new_key()
        self._keys.create(use.tenant)
        return self._keys.wrap(use, data_key), seal(data_key, use, text)

    def unseal(self, use: KeyUse, wrapped: WrappedKey, text: Sealed) -> bytes:
        """Open a sealed text.

        Raises:
            NotFoundError: `keys.unknown`.
            KeysError: `keys.destroyed`, `keys.not_opened`.
        """
        return unseal(self._keys.unwrap(use, wrapped), use, text)

    def destroy_deleted(self, store: Store) -> int:
        """Destroy the keys of deleted tenants: nothing that they ever stored can be opened again.

        Returns how many tenants that were. Level-triggered: what a crash cut short is done by the next call,
        and a key that cannot be destroyed does not keep the others.

        Raises:
            KeysError: `keys.io_failed`, `keys.mode`: of the first that failed, when all were tried.
        """
        with store.reading() as tx:
            due = tx.all(select(_TENANTS.c.id).where(*_UNDONE).order_by(_TENANTS.c.id))
        failed: BulkheadError | None = None
        done = 0
        for row in due:
            try:
                self._keys.destroy(row.id)
            except BulkheadError as exc:
                failed = failed or exc
                continue
            with store.unit_of_work(CONTROLLER) as tx:
                done += _destroyed(tx, row.id)
        if failed is not None:
            raise failed
        return done

    def _make(self, use: KeyUse, state: str) -> WrappedKey:
        if state != VolumeState.CREATING:
            raise KeysError(
                "keys.lost",
                f"{use.subject} was written under a key that is not there any more",
                hint="restore the database and the tenants' keys from the same time",
            )
        self._keys.create(use.tenant)
        return self._keys.wrap(use, new_key())


def _destroyed(tx: UnitOfWork, tenant_id: str) -> bool:
    """Write down that a tenant's keys are gone; False when another controller did."""
    mine = (_TENANTS.c.id == tenant_id, *_UNDONE)
    if tx.first(select(_TENANTS.c.id).where(*mine).with_for_update()) is None:
        return False
    tx.execute(update(_TENANTS).where(*mine).values(keys_destroyed_ms=tx.now_ms))
    tx.record("tenant.keys_destroyed", ("tenant", tenant_id), tenant=tenant_id, stage="outcome")
    return True


def _audited(tx: UnitOfWork, host_id: str, use: KeyUse, wrapped: WrappedKey, *, new: bool) -> bool:
    """Write down that a host gets a key; False when the volume has another key by now.

    Raises:
        ForbiddenError: `keys.not_assigned`: the assignment changed while the key was opened.
    """
    volume = _assigned(tx, host_id, use.subject, use.generation, lock=True)
    # The lock on the instance keeps a second hand-out of the same key waiting here.
    kept = _kept(tx, use.subject, use.generation)
    if kept is None and new and volume.state == VolumeState.CREATING:
        _keep(tx, use, wrapped)
    elif kept != wrapped:
        return False
    tx.record(
        "volume.key",
        ("volume", use.subject),
        tenant=use.tenant,
        stage="outcome",
        details={"generation": use.generation, "key_version": wrapped.key_version},
    )
    return True


def _keep(tx: UnitOfWork, use: KeyUse, wrapped: WrappedKey) -> None:
    tx.add(
        WrappedKeyRow,
        volume_id=use.subject,
        generation=use.generation,
        tenant_id=use.tenant,
        key_version=wrapped.key_version,
        nonce=wrapped.nonce,
        ciphertext=wrapped.ciphertext,
    )
    tx.execute(
        update(_TENANTS)
        .where(_TENANTS.c.id == use.tenant, _TENANTS.c.key_version < wrapped.key_version)
        .values(key_version=wrapped.key_version)
    )
    tx.record("volume.key_made", ("volume", use.subject), tenant=use.tenant, stage="outcome")


_ASSIGNED = (
    select(_VOLUMES.c.tenant_id, _VOLUMES.c.state)
    .join(_INSTANCES, _INSTANCES.c.id == _VOLUMES.c.instance_id)
    .join(_HOSTS, _HOSTS.c.id == _VOLUMES.c.host_id)
    .where(
        _VOLUMES.c.id == bindparam("volume"),
        _VOLUMES.c.generation == bindparam("generation"),
        _VOLUMES.c.host_id == bindparam("host"),
        _INSTANCES.c.host_id == bindparam("host"),
        _INSTANCES.c.state.not_in(OUTSIDE),
        _VOLUMES.c.state.in_((VolumeState.CREATING, VolumeState.AVAILABLE, VolumeState.IN_USE)),
        _HOSTS.c.state != HostState.FENCED,
    )
)
#: Whoever takes the instance away waits for this transaction, or this one sees it.
_ASSIGNED_LOCKED = _ASSIGNED.with_for_update(of=_INSTANCES)
_KEPT = select(_KEYS).where(
    _KEYS.c.volume_id == bindparam("volume"), _KEYS.c.generation == bindparam("generation")
)


def _assigned(tx: Reader, host_id: str, volume_id: str, generation: int, *, lock: bool = False) -> Any:
    row = tx.first(
        _ASSIGNED_LOCKED if lock else _ASSIGNED,
        {"volume": volume_id, "generation": generation, "host": host_id},
    )
    if row is None:
        raise ForbiddenError("keys.not_assigned", "that volume is not assigned to this host now")
    return row


def _kept(tx: Reader, volume_id: str, generation: int) -> WrappedKey | None:
    row = tx.first(_KEPT, {"volume": volume_id, "generation": generation})
    return None if row is None else WrappedKey(row.key_version, row.nonce, row.ciphertext)
