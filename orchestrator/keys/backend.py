"""Where tenants' keys lie: one interface that a key management service fits too, and how one is chosen.

A backend never gives a tenant's key away; it wraps and unwraps with it. The controller calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from orchestrator.keys.files import FileTenantKeys
from orchestrator.keys.wrapping import KeyUse, WrappedKey
from orchestrator.model.errors import InvalidInputError


class TenantKeys(Protocol):
    """Keys of tenants, by version. Every verb can be repeated after a crash."""

    def create(self, tenant: str) -> int:
        """Make sure that a tenant has a key; the version that wraps now.

        Raises:
            KeysError: `keys.destroyed`.
        """

    def wrap(self, use: KeyUse, data_key: bytes) -> WrappedKey:
        """Wrap a data key under the newest version of its tenant's key.

        Raises:
            NotFoundError: `keys.unknown`.
            KeysError: `keys.destroyed`.
        """

    def unwrap(self, use: KeyUse, wrapped: WrappedKey) -> bytes:
        """Open a wrapped key, whatever version wrapped it.

        Raises:
            NotFoundError: `keys.unknown`.
            KeysError: `keys.destroyed`, `keys.not_opened`.
        """

    def rotate(self, tenant: str) -> int:
        """Make a further version; what was wrapped before still opens. To rewrap is to unwrap and wrap.

        Raises:
            NotFoundError: `keys.unknown`.
            KeysError: `keys.destroyed`.
        """

    def destroy(self, tenant: str) -> None:
        """Destroy every version for good: nothing that was ever wrapped for the tenant opens again."""


def open_backend(url: str, *, allow_file: bool) -> TenantKeys:
    """Open the backend that a URL names: `file:///var/lib/bulkhead/keys`.

    Args:
        allow_file: somebody has configured on purpose that keys may lie beside what they protect.

    Raises:
        InvalidInputError: `keys.backend`, `keys.file_not_allowed`.
        KeysError: `keys.mode`, `keys.io_failed`.
    """
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path, errors="strict"))
    except ValueError as exc:
        raise _unknown() from exc
    plain = not (parts.netloc or parts.query or parts.fragment)
    if (
        parts.scheme != "file"
        or not plain
        or not path.is_absolute()
        or ".." in path.parts
        or "\0" in str(path)
    ):
        raise _unknown()
    if not allow_file:
        raise InvalidInputError(
            "keys.file_not_allowed",
            "tenants' keys in files protect no better than the disk they lie on",
            hint="configure another backend, or allow files on purpose",
        )
    return FileTenantKeys(path)


def _unknown() -> InvalidInputError:
    # A URL can hold a password, so it is not repeated.
    return InvalidInputError(
        "keys.backend", "this names no key backend that there is", hint="file:///absolute/path"
    )
