"""Keys in files: closed to others, gone for good when destroyed, whole after a crash at any step."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest

from orchestrator.keys import files
from orchestrator.keys.backend import TenantKeys, open_backend
from orchestrator.keys.files import FileTenantKeys
from orchestrator.keys.wrapping import KeyUse, new_key
from orchestrator.model.errors import InvalidInputError, KeysError, NotFoundError

USE = KeyUse("ten_a", "vol_a", 1)
DATA_KEY = bytes(range(32))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "keys"


@pytest.fixture
def keys(folder) -> TenantKeys:
    return FileTenantKeys(folder)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def code(call, *arguments) -> str:
    with pytest.raises((KeysError, NotFoundError, InvalidInputError)) as caught:
        call(*arguments)
    return caught.value.code


def test_a_key_wraps_and_unwraps_also_after_a_restart(keys, folder):
    assert keys.create("ten_a") == 1
    wrapped = keys.wrap(USE, DATA_KEY)
    assert wrapped.key_version == 1
    assert FileTenantKeys(folder).unwrap(USE, wrapped) == DATA_KEY


def test_files_and_folder_are_closed_to_others_whatever_the_umask(folder):
    before = os.umask(0)
    try:
        keys = FileTenantKeys(folder)
        keys.create("ten_a")
        keys.destroy("ten_b")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert names(folder) == ["ten_a.1.key", "ten_b.destroyed"]


def test_creating_again_keeps_the_key(keys):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    assert keys.create("ten_a") == 1
    assert keys.unwrap(USE, wrapped) == DATA_KEY


def test_rotating_keeps_what_was_wrapped_before(keys, folder):
    keys.create("ten_a")
    old = keys.wrap(USE, DATA_KEY)
    assert keys.rotate("ten_a") == 2
    new = keys.wrap(USE, DATA_KEY)
    assert (old.key_version, new.key_version) == (1, 2)
    assert keys.unwrap(USE, old) == keys.unwrap(USE, new) == DATA_KEY
    assert keys.create("ten_a") == 2
    assert (folder / "ten_a.1.key").read_bytes() != (folder / "ten_a.2.key").read_bytes()


def test_each_tenant_has_a_key_of_its_own(keys, folder):
    keys.create("ten_a")
    keys.create("ten_b")
    assert (folder / "ten_a.1.key").read_bytes() != (folder / "ten_b.1.key").read_bytes()
    wrapped = keys.wrap(USE, DATA_KEY)
    assert code(keys.unwrap, KeyUse("ten_b", "vol_a", 1), wrapped) == "keys.not_opened"


def test_without_a_key_nothing_is_wrapped(keys, folder):
    assert code(keys.wrap, USE, DATA_KEY) == "keys.unknown"
    assert code(keys.rotate, "ten_a") == "keys.unknown"
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    (folder / "ten_a.1.key").unlink()
    assert code(keys.unwrap, USE, wrapped) == "keys.unknown"
    assert names(folder) == []


def test_a_destroyed_key_opens_nothing_and_never_comes_back(keys, folder):
    keys.create("ten_a")
    first = keys.wrap(USE, DATA_KEY)
    keys.rotate("ten_a")
    second = keys.wrap(USE, DATA_KEY)
    keys.create("ten_ab")
    keys.create("ten_a_b")
    keys.destroy("ten_a")
    assert names(folder) == ["ten_a.destroyed", "ten_a_b.1.key", "ten_ab.1.key"]
    for again in (keys, FileTenantKeys(folder)):
        assert code(again.unwrap, USE, first) == "keys.destroyed"
        assert code(again.unwrap, USE, second) == "keys.destroyed"
        assert code(again.wrap, USE, DATA_KEY) == "keys.destroyed"
        assert code(again.create, "ten_a") == "keys.destroyed"
        assert code(again.rotate, "ten_a") == "keys.destroyed"
        again.destroy("ten_a")
    assert keys.wrap(KeyUse("ten_ab", "vol_a", 1), DATA_KEY).key_version == 1


def test_destroying_overwrites_the_bytes_themselves(keys, folder):
    keys.create("ten_a")
    with (folder / "ten_a.1.key").open("rb") as held:
        assert held.read() != bytes(32)
        keys.destroy("ten_a")
        held.seek(0)
        assert held.read() == bytes(32)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o770, 0o755, 0o702])
def test_a_folder_open_to_others_is_refused_at_once_and_later(keys, folder, mode):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    folder.chmod(mode)
    assert code(FileTenantKeys, folder) == "keys.mode"
    assert code(keys.unwrap, USE, wrapped) == "keys.mode"
    assert code(keys.create, "ten_b") == "keys.mode"
    assert code(keys.destroy, "ten_a") == "keys.mode"
    folder.chmod(0o700)
    assert keys.unwrap(USE, wrapped) == DATA_KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_key_open_to_others_is_refused(keys, folder, mode):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    (folder / "ten_a.1.key").chmod(mode)
    assert code(keys.unwrap, USE, wrapped) == "keys.mode"
    assert code(keys.wrap, USE, DATA_KEY) == "keys.mode"
    (folder / "ten_a.1.key").chmod(0o400)
    assert keys.unwrap(USE, wrapped) == DATA_KEY


def test_somebody_elses_folder_and_key_are_refused(keys, folder, monkeypatch):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    me, real = os.geteuid(), os.fstat
    monkeypatch.setattr(files.os, "geteuid", lambda: me + 1)
    assert code(keys.unwrap, USE, wrapped) == "keys.mode"

    def owned_by_other(fd: int) -> os.stat_result:
        info = real(fd)
        if stat.S_ISDIR(info.st_mode):
            return info
        return os.stat_result((*info[:4], me + 1, *info[5:]))

    monkeypatch.setattr(files.os, "geteuid", lambda: me)
    monkeypatch.setattr(files.os, "fstat", owned_by_other)
    assert code(keys.unwrap, USE, wrapped) == "keys.mode"


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_plain_file_is_no_key(keys, folder, tmp_path, kind):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    path = folder / "ten_a.1.key"
    path.rename(tmp_path / "moved")
    if kind == "link":
        path.symlink_to(tmp_path / "moved")
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir(0o700)
    assert code(keys.unwrap, USE, wrapped) == "keys.mode"


def test_a_linked_folder_and_a_file_in_its_place_are_refused(keys, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert code(FileTenantKeys, tmp_path / "link") == "keys.mode"
    (tmp_path / "file").touch()
    assert code(FileTenantKeys, tmp_path / "file") in ("keys.mode", "keys.io_failed")


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_damaged_key_is_told(keys, folder, content):
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    (folder / "ten_a.1.key").write_bytes(content)
    assert code(keys.unwrap, USE, wrapped) == "keys.damaged"


@pytest.mark.parametrize(
    "tenant", ["", "../ten_a", "ten_a/b", "ten_a.1", "ten_\0", "TEN_A", "t" * 45, "ten_a\n"]
)
def test_only_ids_become_names_of_files(keys, folder, tenant):
    for call in (keys.create, keys.rotate, keys.destroy):
        assert code(call, tenant) == "keys.tenant"
    assert code(keys.wrap, KeyUse(tenant, "vol_a", 1), DATA_KEY) == "keys.tenant"
    assert names(folder) == []


def test_parallel_creation_makes_one_key(folder):
    """Threads over backends of their own, as two controllers are."""
    wrapped: list[object] = []

    def work() -> None:
        keys = FileTenantKeys(folder)
        keys.create("ten_a")
        wrapped.append(keys.wrap(USE, DATA_KEY))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrapped) == 8
    assert all(FileTenantKeys(folder).unwrap(USE, each) == DATA_KEY for each in wrapped)
    assert names(folder) == ["ten_a.1.key"]


def test_parallel_rotation_loses_none(folder):
    FileTenantKeys(folder).create("ten_a")
    threads = [threading.Thread(target=FileTenantKeys(folder).rotate, args=("ten_a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert FileTenantKeys(folder).create("ten_a") == 9


#: What leaves a trace on disk, and so what a crash can come between.
STEPS = ("open", "fsync", "link", "unlink")
#: Folder, leftovers, file, its sync, its name, the name's sync, the other name.
STEPS_OF_A_KEY = 7

CRASHING = """
import os, signal, sys
from pathlib import Path
from orchestrator.keys.files import FileTenantKeys
keys = FileTenantKeys(Path(sys.argv[1]))
left = int(sys.argv[3])
def dying(real):
    def call(*arguments, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*arguments, **named)
    return call
for name in ("open", "fsync", "link", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
getattr(keys, sys.argv[2])("ten_a")
"""


class CrashError(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def crash_after(monkeypatch, steps: int) -> None:
    left = [steps]

    def dying(real):
        def call(*arguments, **named):
            if left[0] == 0:
                raise CrashError
            left[0] -= 1
            return real(*arguments, **named)

        return call

    for name in STEPS:
        monkeypatch.setattr(files.os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("steps", range(STEPS_OF_A_KEY + 1))
def test_a_crash_while_creating_leaves_one_usable_key(folder, monkeypatch, steps):
    keys = FileTenantKeys(folder)
    with monkeypatch.context() as patched:
        crash_after(patched, steps)
        try:
            keys.create("ten_a")
        except CrashError:
            pass
        else:
            assert steps == STEPS_OF_A_KEY, "every step was tried"
    left = names(folder)
    again = FileTenantKeys(folder)
    before = (folder / "ten_a.1.key").read_bytes() if "ten_a.1.key" in left else None
    assert again.create("ten_a") == 1
    assert names(folder) == ["ten_a.1.key"]
    assert before in (None, (folder / "ten_a.1.key").read_bytes()), "a key that had its name stays"
    assert again.unwrap(USE, again.wrap(USE, DATA_KEY)) == DATA_KEY


@pytest.mark.parametrize("steps", range(STEPS_OF_A_KEY + 1))
def test_a_crash_while_rotating_closes_nothing(folder, monkeypatch, steps):
    keys = FileTenantKeys(folder)
    keys.create("ten_a")
    wrapped = keys.wrap(USE, DATA_KEY)
    with monkeypatch.context() as patched:
        crash_after(patched, steps)
        try:
            keys.rotate("ten_a")
        except CrashError:
            pass
        else:
            assert steps == STEPS_OF_A_KEY, "every step was tried"
    again = FileTenantKeys(folder)
    assert again.unwrap(USE, wrapped) == DATA_KEY
    newest = again.wrap(USE, DATA_KEY)
    assert newest.key_version in (1, 2)
    assert again.rotate("ten_a") == newest.key_version + 1
    assert again.unwrap(USE, newest) == again.unwrap(USE, wrapped) == DATA_KEY
    assert "part.new" not in names(folder)


def test_a_crash_while_destroying_never_opens_again_and_ends_clean(folder, monkeypatch):
    tried = 0
    for steps in range(20):
        tenant = f"ten_{steps}"
        use = KeyUse(tenant, "vol_a", 1)
        keys = FileTenantKeys(folder)
        keys.create(tenant)
        keys.rotate(tenant)
        wrapped = keys.wrap(use, DATA_KEY)
        with monkeypatch.context() as patched:
            crash_after(patched, steps)
            try:
                keys.destroy(tenant)
            except CrashError:
                tried += 1
        again = FileTenantKeys(folder)
        if f"{tenant}.destroyed" in names(folder):
            assert code(again.unwrap, use, wrapped) == "keys.destroyed"
        else:
            assert again.unwrap(use, wrapped) == DATA_KEY, "nothing is half gone"
        again.destroy(tenant)
        assert code(again.unwrap, use, wrapped) == "keys.destroyed"
        assert not [name for name in names(folder) if name.startswith(f"{tenant}.") and name.endswith(".key")]
    assert 10 < tried < 20, "every step was tried"


@pytest.mark.parametrize("steps", [3, 4, 5, 6])
def test_a_killed_process_leaves_no_lock_and_a_usable_folder(folder, steps):
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(folder), "create", str(steps)], check=False, timeout=60
    )
    assert done.returncode == -9
    keys = FileTenantKeys(folder)
    assert keys.create("ten_a") == 1
    assert names(folder) == ["ten_a.1.key"]


def test_a_full_disk_is_told_and_leaves_no_key(keys, folder, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        assert code(keys.create, "ten_a") == "keys.io_failed"
    assert keys.create("ten_a") == 1
    assert names(folder) == ["ten_a.1.key"]


def test_no_error_shows_a_key(keys, folder):
    keys.create("ten_a")
    secret = (folder / "ten_a.1.key").read_bytes()
    wrapped = keys.wrap(USE, DATA_KEY)
    with pytest.raises(KeysError) as caught:
        keys.unwrap(KeyUse("ten_a", "vol_b", 1), wrapped)
    told = f"{caught.value!r} {caught.value.explain()}"
    assert secret.hex() not in told
    assert repr(secret)[2:-1] not in told


def test_the_file_backend_is_opened_when_it_is_allowed(folder):
    keys = open_backend(f"file://{folder}", allow_file=True)
    keys.create("ten_a")
    assert keys.unwrap(USE, keys.wrap(USE, DATA_KEY)) == DATA_KEY


def test_the_file_backend_is_refused_unless_somebody_wants_it(folder):
    assert code(lambda: open_backend(f"file://{folder}", allow_file=False)) == "keys.file_not_allowed"
    assert not folder.exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/keys",
        "file:keys",
        "file://keys/a",
        "file:///var/../keys",
        "file:///keys?x",
        "file:///keys#x",
        "file:///%00",
        "file:///%ff",
        "http://[",
        "vault://user:hunter2@example.org/",
        "FILE2:///keys",
    ],
)
def test_other_urls_are_refused_and_not_repeated(url):
    with pytest.raises(InvalidInputError) as caught:
        open_backend(url, allow_file=True)
    assert caught.value.code == "keys.backend"
    assert "hunter2" not in caught.value.explain()


def test_keys_are_random(keys, folder):
    for number in range(20):
        keys.create(f"ten_{number}")
    assert len({path.read_bytes() for path in folder.iterdir()}) == 20
    assert new_key() not in {path.read_bytes() for path in folder.iterdir()}
