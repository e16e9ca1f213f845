"""libvirt secrets that hold a volume's passphrase around one start: ephemeral, private, found by name.

Never written to a disk by libvirt (`ephemeral`), never told again (`private`), undefined right after the
start. Called by `domains.LibvirtHypervisor`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import libvirt
from lxml import etree

from orchestrator.agent.libvirt.connection import Connection
from orchestrator.agent.libvirt.errors import is_gone, translate
from orchestrator.agent.libvirt.xml.disks import secret_uuid
from orchestrator.agent.libvirt.xml.elements import node
from orchestrator.model.observed import ObservedSecret

#: Usage names are unique, and by the schema look like paths; this prefix makes ours known as ours.
_USAGE = "/bulkhead/"


def secret_xml(volume: str) -> str:
    """The definition of a volume's secret."""
    usage = node("usage", node("volume", text=_USAGE + volume), type="volume")
    made = node("secret", node("uuid", text=secret_uuid(volume)), usage, ephemeral="yes", private="yes")
    return etree.tostring(made, encoding="unicode")


class Secrets:
    """The secrets of one libvirtd."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> tuple[ObservedSecret, ...]:
        """Secrets of ours that exist now, sorted.

        Raises:
            HostError: `secret.list_failed`.
        """

        def work(connection: Any) -> set[str]:
            found = set()
            for secret in connection.listAllSecrets(0):
                usage = secret.usageID() if secret.usageType() == libvirt.VIR_SECRET_USAGE_TYPE_VOLUME else ""
                if usage.startswith(_USAGE):
                    found.add(usage.removeprefix(_USAGE))
            return found

        try:
            return tuple(ObservedSecret(volume) for volume in sorted(self._connection.call(work)))
        except libvirt.libvirtError as exc:
            raise translate(exc, "secret", "list", "secrets") from exc

    def put(self, volume: str, passphrase: bytes) -> None:
        """Define the secret and set its value; a secret without its value does not stay.

        Raises:
            HostError: `secret.put_failed`.
        """

        def work(connection: Any) -> None:
            secret = connection.secretDefineXML(secret_xml(volume), 0)
            try:
                secret.setValue(passphrase, 0)
            except libvirt.libvirtError:
                with contextlib.suppress(libvirt.libvirtError):
                    secret.undefine()
                raise

        try:
            self._connection.call(work)
        except libvirt.libvirtError as exc:
            raise translate(exc, "secret", "put", volume) from exc

    def drop(self, volume: str) -> None:
        """Undefine the secret; unknown is fine.

        Raises:
            HostError: `secret.drop_failed`.
        """

        def work(connection: Any) -> None:
            connection.secretLookupByUUIDString(secret_uuid(volume)).undefine()

        try:
            self._connection.call(work)
        except libvirt.libvirtError as exc:
            if not is_gone(exc):
                raise translate(exc, "secret", "drop", volume) from exc
