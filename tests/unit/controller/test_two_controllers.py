"""Two controllers as processes on one PostgreSQL: one is stopped holding the lease, the other goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator.controller.checks import violations
from orchestrator.controller.scheduler import LEASE
from orchestrator.model.states import InstanceState
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.leases import LeaseRow
from orchestrator.store.unit_of_work import table_of
from tests.databases import fresh_database
from tests.unit.controller.platform import Platform
from tests.unit.link import listener

LEASES, RECORDS = table_of(LeaseRow), table_of(AuditRecordRow)
ROOT = Path(__file__).parents[3]
#: For what never comes; a machine with much else to do takes its time for what does.
LONG_S = 400.0
#: A transaction that stands still so long is ended. Sooner than in real life, and longer than a busy machine
#: lets one wait that works.
IDLE_S = 15


def eventually(holds: Callable[[], Any]) -> Any:
    """Wait with few looks: the processes need the machine."""
    return listener.eventually(holds, within_s=LONG_S, every_s=0.1)


class Process:
    """One controller; its words go to a file."""

    def __init__(self, folder: Path, url: str, *argv: str) -> None:
        self.settings = folder / "controller.toml"
        self.settings.write_text(
            f'state_dir = "{folder}"\ndatabase = "{url}"\npublic_port = 0\nagents_port = 0\n'
            "allow_keys_in_files = true\nlease_s = 2\n"
        )
        self.words = folder / "words"
        with self.words.open("wb") as words:
            self.running = subprocess.Popen(
                [sys.executable, *(each.replace("SETTINGS", str(self.settings)) for each in argv)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )

    @property
    def stopped(self) -> bool:
        """By SIGSTOP, as the kernel sees it."""
        stat = Path(f"/proc/{self.running.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def said(self, text: str) -> bool:
        return text in self.words.read_text()

    def end(self) -> None:
        if self.running.poll() is None:
            self.running.send_signal(signal.SIGCONT)
            self.running.terminate()
            self.running.wait(LONG_S)


@contextmanager
def controller(folder: Path, url: str, *argv: str) -> Iterator[Process]:
    made = Process(folder, url, *argv)
    try:
        yield made
    finally:
        made.end()


def holder(platform: Platform) -> str:
    with platform.store.reading() as tx:
        return str(tx.scalar(select(LEASES.c.owner).where(LEASES.c.name == LEASE)))


def placements(platform: Platform) -> list[str]:
    """Ids of instances in the order in which they were placed."""
    with platform.store.reading() as tx:
        rows = tx.all(
            select(RECORDS.c.subject_id).where(RECORDS.c.kind == "instance.place").order_by(RECORDS.c.at_ms)
        )
        return [row.subject_id for row in rows]


@pytest.fixture
def url(postgres, request, tmp_path) -> Iterator[str]:
    with fresh_database("postgresql", request, tmp_path) as url:
        yield url


@pytest.fixture
def theirs(url) -> str:
    """The controllers' address of the database: what one of them leaves open is ended soon."""
    return f"{url}&options=-c%20idle_in_transaction_session_timeout%3D{IDLE_S * 1000}"


@pytest.fixture
def platform(url, tmp_path) -> Iterator[Platform]:
    database = Database(url)
    yield Platform(Store(database), tmp_path / "host")
    database.dispose()


# Every wait may take its time, one after the other.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("where", "told"), [("decided", "lease.lost"), ("writing", "store.unavailable")])
def test_one_that_was_stopped_past_its_lease_writes_nothing(platform, theirs, tmp_path, where, told):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    stopping = ("-m", "tests.unit.controller.stopping", "SETTINGS", where)
    with controller(first, theirs, *stopping) as slept:
        eventually(lambda: holder(platform))
        platform.create(platform.acme, "train")
        eventually(lambda: slept.stopped)
        assert platform.instance(platform.acme, "train").state is InstanceState.PENDING
        was = holder(platform)
        assert was.endswith(f"-{slept.running.pid}")

        # The second has the first's keys and authority, as on any other machine of the deployment.
        shutil.copytree(first, second)
        with controller(
            second, theirs, "-m", "orchestrator", "controller", "serve", "--settings", "SETTINGS"
        ) as b:
            eventually(lambda: platform.instance(platform.acme, "train").state is InstanceState.SCHEDULED)
            assert holder(platform).endswith(f"-{b.running.pid}")
            assert slept.stopped

            os.kill(slept.running.pid, signal.SIGCONT)
            eventually(lambda: slept.said(told))
            assert placements(platform) == [platform.instance(platform.acme, "train").id]

            # Both live: what comes now is placed once, by whoever holds the lease.
            platform.create(platform.globex, "serve")
            eventually(lambda: len(placements(platform)) == 2)
        # The second ended well and gave the lease up: the first takes its work over again.
        platform.create(platform.acme, "late")
        eventually(lambda: len(placements(platform)) == 3)
        assert holder(platform) == was
    platform.settle()

    assert {each.state for each in platform.all_instances()} == {InstanceState.RUNNING}
    assert len(platform.world.domains) == 3
    with platform.store.reading() as tx:
        assert violations(tx) == ()
