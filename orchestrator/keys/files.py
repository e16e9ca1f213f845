"""Tenants' keys in files: one of mode 0600 for each tenant and version, in a folder of mode 0700.

For one machine and for labs. A key file is never written twice: it gets its name whole, or not at all. A
tenant whose keys are destroyed leaves a mark, so that no key is ever made again under its id, and a
destruction that was cut short goes on. Destroying overwrites and unlinks; a file system that copies on write,
or a disk that moves blocks, may keep an old copy, which is why this backend has to be asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.keys.wrapping import KEY_BYTES, KeyUse, WrappedKey, new_key, unwrap_key, wrap_key
from orchestrator.model.errors import InvalidInputError, KeysError, NotFoundError

_TENANT = re.compile(r"[a-z0-9_]{1,44}")
#: Under the lock there is one writer: a file of this name was left by a crash.
_PART = "part.new"
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class FileTenantKeys:
    """Keys in a folder of their own.

    Args:
        folder: absolute path; made when it is missing.

    Raises:
        KeysError: `keys.mode`, `keys.io_failed`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _translated("making the folder of keys"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._opened():
            pass

    def create(self, tenant: str) -> int:
        """Make sure that a tenant has a key; the version that wraps now."""
        _check_tenant(tenant)
        with self._locked() as at:
            _refuse_destroyed(at, tenant)
            newest = _newest(at, tenant)
            if newest == 0:
                newest = _add(at, tenant, 1)
            return newest

    def rotate(self, tenant: str) -> int:
        """Make a further version; what was wrapped before still opens."""
        _check_tenant(tenant)
        with self._locked() as at:
            _refuse_destroyed(at, tenant)
            newest = _newest(at, tenant)
            if newest == 0:
                raise _unknown(tenant)
            return _add(at, tenant, newest + 1)

    def wrap(self, use: KeyUse, data_key: bytes) -> WrappedKey:
        """Wrap a data key under the newest version; costs one look per version and one read."""
        _check_tenant(use.tenant)
        with self._opened() as at:
            _refuse_destroyed(at, use.tenant)
            newest = _newest(at, use.tenant)
            tenant_key = _read(at, use.tenant, newest)
        return wrap_key(tenant_key, newest, use, data_key)

    def unwrap(self, use: KeyUse, wrapped: WrappedKey) -> bytes:
        """Open a wrapped key, whatever version wrapped it."""
        _check_tenant(use.tenant)
        with self._opened() as at:
            _refuse_destroyed(at, use.tenant)
            tenant_key = _read(at, use.tenant, wrapped.key_version)
        return unwrap_key(tenant_key, use, wrapped)

    def destroy(self, tenant: str) -> None:
        """Destroy every version for good; from the first step on none of them is used any more."""
        _check_tenant(tenant)
        with self._locked() as at:
            _mark_destroyed(at, tenant)
            name = re.compile(re.escape(tenant) + r"\.[0-9]+\.key")
            with os.scandir(at) as entries:
                names = sorted(entry.name for entry in entries if name.fullmatch(entry.name))
            for found in names:
                _wipe(at, found)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor, looked at anew each time: modes can be loosened later too."""
        with _translated("reading the folder of keys"):
            at = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _refuse_loose(os.fstat(at), "the folder of keys", str(self._folder), "0700")
                yield at
            finally:
                os.close(at)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The same with nobody else writing, in any thread or process, and what a crash left cleared."""
        with self._opened() as at:
            fcntl.flock(at, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # Before the link it is a key that nothing was wrapped with. After the link it is a second
                # name of a key in use, so it must not be overwritten.
                os.unlink(_PART, dir_fd=at)
            yield at


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise KeysError("keys.mode", f"{doing}: there is something else in its place") from exc
        raise KeysError("keys.io_failed", f"{doing} failed: {exc.strerror or exc}") from exc


def _check_tenant(tenant: str) -> None:
    if not _TENANT.fullmatch(tenant):
        raise InvalidInputError("keys.tenant", "a tenant's id is 1 to 44 of a-z, 0-9 and _")


def _unknown(tenant: str) -> NotFoundError:
    return NotFoundError("keys.unknown", f"{tenant} has no such key", hint="restore the folder of keys")


def _refuse_loose(info: os.stat_result, what: str, path: str, wanted: str) -> None:
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid():
        raise KeysError(
            "keys.mode", f"{what} {path} belongs to uid {info.st_uid}, not to {os.geteuid()}", hint="chown it"
        )
    if mode & _GROUP_AND_OTHERS:
        raise KeysError("keys.mode", f"{what} {path} has mode {mode:04o}", hint=f"chmod {wanted} {path}")


def _key_name(tenant: str, version: int) -> str:
    return f"{tenant}.{version}.key"


def _exists(at: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _newest(at: int, tenant: str) -> int:
    """The newest version, 0 for none. Versions have no gap while a tenant lives."""
    version = 0
    while _exists(at, _key_name(tenant, version + 1)):
        version += 1
    return version


def _refuse_destroyed(at: int, tenant: str) -> None:
    if _exists(at, f"{tenant}.destroyed"):
        raise KeysError(
            "keys.destroyed", f"the keys of {tenant} were destroyed; nothing opens its data again"
        )


def _mark_destroyed(at: int, tenant: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(f"{tenant}.destroyed", flags, 0o600, dir_fd=at))
    os.fsync(at)


def _add(at: int, tenant: str, version: int) -> int:
    """Write a fresh key. Linking gives it its name, whole and synced, and cannot replace an older one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(_PART, flags, 0o600, dir_fd=at), "wb") as part:
        part.write(new_key())
        part.flush()
        os.fsync(part.fileno())
    os.link(_PART, _key_name(tenant, version), src_dir_fd=at, dst_dir_fd=at)
    os.fsync(at)
    os.unlink(_PART, dir_fd=at)
    return version


def _read(at: int, tenant: str, version: int) -> bytes:
    name = _key_name(tenant, version)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except FileNotFoundError:
        raise _unknown(tenant) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise KeysError("keys.mode", f"{name} is no regular file")
        _refuse_loose(info, "the key", name, "0600")
        content = os.read(fd, KEY_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) != KEY_BYTES:
        raise KeysError(
            "keys.damaged",
            f"{name} has not {KEY_BYTES} bytes",
            hint="restore the folder of keys from a backup",
        )
    return content


def _wipe(at: int, name: str) -> None:
    with open(os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at), "wb") as stream:
        stream.write(bytes(KEY_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    os.unlink(name, dir_fd=at)
    os.fsync(at)
