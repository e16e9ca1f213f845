"""Databases for tests: every store test runs on SQLite and on a PostgreSQL of its own, made from Debian's.

One PostgreSQL per process that runs tests, on a Unix socket in a temporary folder, listening on no network;
each test gets a database copied from a template whose schema was brought up once, and dropped when it ends.
Import `store`, `database_url` where needed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.memory import memory_folder

#: For what never comes, on a busy machine.
STARTS_WITHIN_S = 120
OLD_S = 3600
KINDS = ("sqlite", "postgresql")
_numbers = itertools.count(1)


def _remove_left() -> None:
    """Take away the folders of servers whose tests were killed; younger ones may be about to start."""
    for root in (Path("/tmp"), Path("/dev/shm")):
        for folder in root.glob("bh-pg-*"):
            with contextlib.suppress(FileNotFoundError):
                running = (folder / "data" / "postmaster.pid").exists()
                if not running and folder.stat().st_mtime < time.time() - OLD_S:
                    shutil.rmtree(folder, ignore_errors=True)


class Postgres:
    """A running PostgreSQL."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        assert found, "PostgreSQL is missing: hostprep/packages.sh test"
        self.programs = found[-1]
        # Whatever TMPDIR says: a socket's path is short, and the server's own user must reach it. In memory
        # where there is room, since each database is a copy of some hundred files.
        _remove_left()
        self.folder = Path(tempfile.mkdtemp(prefix="bh-pg-", dir=memory_folder() or "/tmp"))
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        options = "--auth=trust --username=bulkhead --no-sync --encoding=UTF8 --locale=C.UTF-8"
        self._run("initdb", "-D", str(self.folder / "data"), *options.split())
        settings = ["-k", str(self.folder)]
        for each in (
            "listen_addresses=",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "max_connections=200",
        ):
            settings += ["-c", each]
        # It ends with us, however we end: what lies in memory must not stay there.
        lead = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:
            lead += ["--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        argv = [*lead, str(self.programs / "postgres"), "-D", str(self.folder / "data"), *settings]
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen(argv, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait()
        self.command("CREATE DATABASE template_bulkhead")
        template = Database(self.url("template_bulkhead"))
        Store(template).prepare()
        template.dispose()

    def url(self, name: str) -> str:
        return f"postgresql://bulkhead@/{name}?host={self.folder}"

    def command(self, words: str) -> None:
        with psycopg.connect(f"host={self.folder} user=bulkhead dbname=postgres", autocommit=True) as link:
            link.execute(words)  # type: ignore[call-overload]

    def make(self, template: str = "template_bulkhead") -> str:
        name = f"test_{next(_numbers)}"
        self.command(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Take a database away, whoever is still connected."""
        self.command(f"DROP DATABASE {name_in(url)} WITH (FORCE)")

    def dump(self, name: str) -> bytes:
        """Everything in one database, as an operator's backup holds it; bytes stand there in hex."""
        words = [str(self.programs / "pg_dump"), "-h", str(self.folder), "-U", "bulkhead", name]
        return subprocess.run(words, capture_output=True, check=True, cwd="/").stdout

    def stop(self) -> None:
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(STARTS_WITHIN_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                self.command("SELECT 1")
            except psycopg.OperationalError:
                assert self._server.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root.
        lead = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        argv = [*lead, str(self.programs / program), *arguments]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout + done.stderr


_POSTGRES = pytest.StashKey[Postgres]()
_SQLITE = pytest.StashKey[Path]()


def name_in(url: str) -> str:
    """A database's name, from its URL."""
    return url.removeprefix("postgresql://bulkhead@/").partition("?")[0]


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """One for all: each `conftest` that imports this has a fixture of its own, and a server takes seconds."""
    stash = request.config.stash
    if _POSTGRES not in stash:
        stash[_POSTGRES] = server = Postgres()
        request.config.add_cleanup(server.stop)
    return stash[_POSTGRES]


@pytest.fixture(scope="session")
def sqlite_template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared SQLite file, to be copied; one for all."""
    stash = request.config.stash
    if _SQLITE not in stash:
        stash[_SQLITE] = path = tmp_path_factory.mktemp("sqlite") / "template.db"
        database = Database(f"sqlite:///{path}")
        Store(database).prepare()
        # Closing the last connection writes the log back into the file.
        database.dispose()
    return stash[_SQLITE]


@contextlib.contextmanager
def fresh_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of a prepared, empty database, for fixtures of any scope."""
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        url = str(server.make())
        yield url
        server.drop(url)
    else:
        path = folder / "bulkhead.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a prepared, empty database of either kind."""
    with fresh_database(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    database = Database(database_url)
    yield Store(database)
    database.dispose()


def dump(database_url: str, request: pytest.FixtureRequest) -> bytes:
    """Whatever somebody gets who steals the database: a dump, or SQLite's files with their log."""
    if database_url.startswith("postgresql"):
        return bytes(request.getfixturevalue("postgres").dump(name_in(database_url)))
    file = Path(database_url.removeprefix("sqlite:///"))
    return b"".join(path.read_bytes() for path in sorted(file.parent.glob(f"{file.name}*")))
