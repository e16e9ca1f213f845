"""User data of instances: sealed before it reaches the database, opened only for the host that runs them.

It may hold passwords, so that a dump of the database must not show it. Each has a data key of its own, which
its tenant's key wraps: destroying that key makes it unreadable. Keys are read outside of any transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select, update

from orchestrator.controller.keyring import Keyring
from orchestrator.keys.wrapping import USER_DATA, KeyUse, Sealed, WrappedKey
from orchestrator.model.assignment import Assignment, Seed
from orchestrator.model.errors import BulkheadError, KeysError
from orchestrator.store.ids import new_id
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.keys import UserDataRow
from orchestrator.store.tables.tenants import TenantRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE, _INSTANCES, _TENANTS = table_of(UserDataRow), table_of(InstanceRow), table_of(TenantRow)
#: What an instance gets whose tenant says nothing; it is no secret and is not kept.
DEFAULT = Seed().user_data
#: It is written once with its instance, so there is one version of it.
_VERSION = 1
#: What is wrong with one tenant's keys, or one row. Anything else may pass, and the host asks again.
_LASTING = ("keys.destroyed", "keys.unknown", "keys.not_opened", "keys.damaged")


@dataclass(frozen=True)
class SealedUserData:
    """User data as the database keeps it, for one instance of one tenant; `size_bytes` is of the text."""

    instance_id: str
    tenant_id: str
    size_bytes: int
    key: WrappedKey
    text: Sealed


def seal(
    keyring: Keyring | None, tenant_id: str, text: str, *, dry_run: bool = False
) -> SealedUserData | None:
    """Seal the user data of an instance that is to be made, under the id that it will have.

    Reads the tenant's key: no transaction may be open. A dry run makes and reads none, and returns None, as
    does user data that says nothing.

    Raises:
        KeysError: `keys.none`: this controller has no key backend; `keys.destroyed`.
    """
    if text == DEFAULT:
        return None
    if keyring is None:
        raise KeysError(
            "keys.none",
            "this controller has no key backend, so it can keep no user data",
            field="user_data",
            hint="leave user_data out, or have an operator configure where keys lie",
        )
    if dry_run:
        return None
    identity, raw = new_id("vm"), text.encode()
    key, sealed = keyring.seal(_use(tenant_id, identity), raw)
    return SealedUserData(identity, tenant_id, len(raw), key, sealed)


def keep(tx: UnitOfWork, sealed: SealedUserData) -> None:
    """Write it down beside its instance."""
    tx.add(
        UserDataRow,
        instance_id=sealed.instance_id,
        tenant_id=sealed.tenant_id,
        key_version=sealed.key.key_version,
        key_nonce=sealed.key.nonce,
        key_ciphertext=sealed.key.ciphertext,
        nonce=sealed.text.nonce,
        ciphertext=sealed.text.ciphertext,
    )
    tx.execute(
        update(_TENANTS)
        .where(_TENANTS.c.id == sealed.tenant_id, _TENANTS.c.key_version < sealed.key.key_version)
        .values(key_version=sealed.key.key_version)
    )


def of_host(tx: Reader, host_id: str) -> dict[str, SealedUserData]:
    """Return what belongs to the instances of one host, by their ids; still sealed."""
    rows = tx.all(
        select(_TABLE, _INSTANCES.c.user_data_bytes)
        .join(_INSTANCES, _INSTANCES.c.id == _TABLE.c.instance_id)
        .where(_INSTANCES.c.host_id == host_id)
    )
    return {
        row.instance_id: SealedUserData(
            row.instance_id,
            row.tenant_id,
            row.user_data_bytes,
            WrappedKey(row.key_version, row.key_nonce, row.key_ciphertext),
            Sealed(row.nonce, row.ciphertext),
        )
        for row in rows
    }


def opened(
    keyring: Keyring | None, assignment: Assignment, sealed: Mapping[str, SealedUserData]
) -> tuple[Assignment, dict[str, BulkheadError]]:
    """Put the user data into an assignment; reads tenants' keys: no transaction may be open.

    An instance whose user data does not open is left out, with the reason: its host leaves alone what it runs
    of it, and other tenants' instances go on.

    Raises:
        KeysError: `keys.none`, `keys.io_failed`, `keys.mode`: no key can be read now.
    """
    if not sealed:
        return assignment, {}
    if keyring is None:
        raise KeysError("keys.none", "this controller has no key backend")
    found, failed = [], {}
    for instance in assignment.instances:
        mine = sealed.get(instance.id)
        if mine is None:
            found.append(instance)
            continue
        try:
            raw = keyring.unseal(_use(instance.tenant, instance.id), mine.key, mine.text)
        except BulkheadError as exc:
            if exc.code not in _LASTING:
                raise
            failed[instance.id] = exc
        else:
            found.append(instance.model_copy(update={"seed": Seed(user_data=raw.decode())}))
    return assignment.model_copy(update={"instances": tuple(found)}), failed


def _use(tenant_id: str, instance_id: str) -> KeyUse:
    return KeyUse(tenant_id, instance_id, _VERSION, USER_DATA)
