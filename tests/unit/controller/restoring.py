"""Bringing a database back from a backup, and what an operator does then."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest

from orchestrator.controller import deployment
from orchestrator.controller.scheduler import Scheduler
from orchestrator.model.actor import CONTROLLER
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.unit.controller.platform import Platform


@pytest.fixture
def back_up(platform, request, tmp_path):
    """Copies the database; what it returns gives the platform on that copy, as after a restore."""

    def copied():
        old = platform.store.database
        url = old.engine.url.render_as_string(hide_password=False)
        old.dispose()
        if old.kind == "sqlite":
            path = tmp_path / "yesterday.db"
            shutil.copy(Path(old.engine.url.database), path)
            url = f"sqlite:///{path}"
        else:
            url = request.getfixturevalue("postgres").make(old.engine.url.database)

        def restore() -> Platform:
            again = copy.copy(platform)
            database = Database(url)
            request.addfinalizer(database.dispose)
            again.store = Store(database)
            again.scheduler = Scheduler(again.store)
            return again

        return restore

    return copied


def say_restored(platform: Platform) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        deployment.restored(tx, "the disk was lost")


def resume(platform: Platform, **options: bool) -> None:
    with platform.store.unit_of_work(CONTROLLER) as tx:
        deployment.resume(tx, "looked at everything", **options)


def running(platform: Platform) -> dict[str, int | None]:
    return {each.spec.instance.name: each.pid for each in platform.world.domains.values()}
