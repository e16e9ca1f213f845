"""Reads and changes Open vSwitch's database, one short conversation at a time.

Each call connects anew, takes a snapshot of the tables we use, and goes: so a restarted ovsdb-server needs no
care, and nothing runs between calls. Most of a conversation's time goes into reading the schema, so calls
within `kept` share one; each of them brings it up to date first, and what is read is never older than the
call. (ovsdbapp's own connection is one per process with a thread and a cache that may lag; its helpers and
the IDL under it are used instead.) Never decides what a bridge or a port should be: `switch` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ovs.db import idl as ovs_idl
from ovs.poller import Poller
from ovsdbapp.backend.ovs_idl import idlutils

from orchestrator.model.errors import HostError

T = TypeVar("T")

_SCHEMA = "Open_vSwitch"
#: The last five only so that a bridge's references to them can be followed, and cut.
_TABLES = ("Open_vSwitch", "Bridge", "Port", "Interface", "Controller", "Mirror", "NetFlow", "sFlow", "IPFIX")
#: Changes that lose a race with another writer are worked out again on fresh rows this often.
_ATTEMPTS = 5


class Database:
    """The switch's configuration database behind its Unix socket.

    Args:
        socket_path: ovsdb-server's socket.
        timeout_s: how long one call may take in all.
    """

    def __init__(self, socket_path: str = "/run/openvswitch/db.sock", *, timeout_s: float = 10.0) -> None:
        self._remote = f"unix:{socket_path}"
        self._timeout_s = timeout_s
        self._kept = _Kept()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let this thread's calls within share one connection; other threads' calls have their own.

        It ends with the block: a client that does not read makes the server hoard what it has to tell.
        """
        if self._kept.keeps:
            yield
            return
        self._kept.keeps = True
        try:
            yield
        finally:
            self._kept.keeps = False
            self._forget()

    def read(self, look: Callable[[Any], T]) -> T:
        """Give a fresh snapshot (tables by name, rows by UUID) to `look` and return what it makes of it.

        Raises:
            HostError: `network.database_down`.
        """
        with self._conversation() as (idl, _):
            return look(idl.tables)

    def change(self, act: Callable[[Any, Any], T], *, applied: bool = False) -> T:
        """Let `act(tables, transaction)` change rows and commit all of it, or nothing.

        `act` may run more than once, on fresh rows each time; what it raises aborts the transaction.

        Args:
            act: changes rows; `verify` a column that the decision rests on.
            applied: wait until ovs-vswitchd has made it so.

        Raises:
            HostError: `network.database_down`, `network.database_refused`, `network.switch_down` (not applied
                in time).
        """
        with self._conversation() as (idl, deadline):
            for _ in range(_ATTEMPTS):
                transaction = ovs_idl.Transaction(idl)
                try:
                    result = act(idl.tables, transaction)
                    wanted = _count_up(idl.tables) if applied else 0
                except Exception:
                    transaction.abort()
                    raise
                status = _commit(idl, transaction, deadline)
                if status == ovs_idl.Transaction.TRY_AGAIN:
                    continue
                if status not in (ovs_idl.Transaction.SUCCESS, ovs_idl.Transaction.UNCHANGED):
                    raise HostError(
                        "network.database_refused",
                        f"the switch's database refused a change: {transaction.get_error()}",
                    )
                if applied:
                    _wait_applied(idl, wanted, deadline)
                return result
        raise HostError(
            "network.database_refused", f"{_ATTEMPTS} changes in a row lost against other writers"
        )

    @contextmanager
    def _conversation(self) -> Iterator[tuple[Any, float]]:
        deadline = time.monotonic() + self._timeout_s
        idl = self._kept.idl
        if idl is None or not _up_to_date(idl, deadline):
            self._forget()
            idl = self._connected()
            if self._kept.keeps:
                self._kept.idl = idl
        try:
            yield idl, deadline
        finally:
            if idl is not self._kept.idl:
                idl.close()

    def _connected(self) -> Any:
        idl = None
        try:
            helper = idlutils.get_schema_helper(self._remote, _SCHEMA)
            for table in _TABLES:
                helper.register_table(table)
            idl = ovs_idl.Idl(self._remote, helper)
            idlutils.wait_for_change(idl, self._timeout_s)
        except Exception as exc:  # both libraries raise bare Exception for a socket that does not answer
            if idl is not None:
                idl.close()
            raise HostError(
                "network.database_down",
                f"the switch's database at {self._remote} does not answer: {exc}",
                hint="systemctl status openvswitch-switch",
            ) from exc
        return idl

    def _forget(self) -> None:
        idl, self._kept.idl = self._kept.idl, None
        if idl is not None:
            idl.close()


class _Kept(threading.local):
    """The connection of a thread that keeps one."""

    keeps: bool = False
    idl: Any = None


def _up_to_date(idl: Any, deadline: float) -> bool:
    """Bring a connection up to date; False when it is of no use any more.

    The server answers in order: once it has answered a question, all that was changed before has come.
    """
    idl.run()
    if idl.state != ovs_idl.Idl.IDL_S_MONITORING:
        return False
    transaction = ovs_idl.Transaction(idl)
    for root in idl.tables["Open_vSwitch"].rows.values():
        root.fetch("cur_cfg")
    try:
        return bool(_commit(idl, transaction, deadline) == ovs_idl.Transaction.SUCCESS)
    except HostError:
        return False


def _count_up(tables: Any) -> int:
    """Ask ovs-vswitchd to tell when it has applied this transaction: it copies next_cfg to cur_cfg then."""
    (root,) = tables["Open_vSwitch"].rows.values()
    root.verify("next_cfg")
    root.next_cfg = root.next_cfg + 1
    return int(root.next_cfg)


def _wait(idl: Any, transaction: Any, deadline: float) -> bool:
    """Sleep until the server said something; False when time is up."""
    left_ms = int((deadline - time.monotonic()) * 1000)
    if left_ms <= 0:
        return False
    poller = Poller()
    idl.wait(poller)
    if transaction is not None:
        transaction.wait(poller)
    poller.timer_wait(left_ms)
    poller.block()
    return True


def _commit(idl: Any, transaction: Any, deadline: float) -> Any:
    while (status := transaction.commit()) == ovs_idl.Transaction.INCOMPLETE:
        if not _wait(idl, transaction, deadline):
            transaction.abort()
            raise HostError("network.database_down", "the switch's database did not answer a change in time")
        idl.run()
    return status


def _wait_applied(idl: Any, wanted: int, deadline: float) -> None:
    while all(root.cur_cfg < wanted for root in idl.tables["Open_vSwitch"].rows.values()):
        if not _wait(idl, None, deadline):
            raise HostError(
                "network.switch_down",
                "ovs-vswitchd did not apply a change of its configuration in time",
                hint="systemctl status openvswitch-switch",
            )
        idl.run()
