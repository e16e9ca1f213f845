"""Who this host is: its key, its certificate, its authority, and when to ask for the next certificate.

Key and certificate lie in one file of mode 0600, so that no crash leaves one without the other; each renewal
takes a new key. The key never leaves the host and never appears in an error. Decides nothing about the
controller. `client` and the agent's process call it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.agent.link.pin import LinkUntrusted
from orchestrator.model.errors import BulkheadError, ConflictError, HostError, NotFoundError
from orchestrator.model.protocol import EnrolAnswer, RenewAnswer

#: Key and certificate; the authority; what enrolment said.
_IDENTITY, _AUTHORITY, _ENROLMENT = "identity.pem", "authority.pem", "enrolment.json"


@dataclass(frozen=True)
class Identity:
    """What the host was told at enrolment, and how long its certificate lasts."""

    host: str
    deployment: str
    agents_url: str
    not_before: dt.datetime
    not_after: dt.datetime

    def renewal_due(self, now: dt.datetime) -> bool:
        """Whether a third of the certificate's life, or less, is left."""
        return self.not_after - now <= (self.not_after - self.not_before) / 3


@dataclass(frozen=True)
class FreshKey:
    """A new key that no certificate names yet, and the request for one."""

    csr_pem: str
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def make(cls) -> FreshKey:
        """Draw a P-256 key. The request's subject says nothing: the authority writes its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bulkhead agent")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return cls(request.public_bytes(serialization.Encoding.PEM).decode(), key)

    def with_certificate(self, certificate: x509.Certificate) -> bytes:
        """Return key and certificate as one PEM text.

        Raises:
            LinkUntrusted: `link.bad_certificate`: it is of another key.
        """
        if certificate.public_key() != self._key.public_key():
            raise _bad("it is of another key")
        key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key + certificate.public_bytes(serialization.Encoding.PEM)


class Certificates:
    """The files of one host's identity.

    Args:
        folder: a place of its own that outlives reboots; made with mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def enrolled(self) -> bool:
        """Whether the host has an identity; the file written last says so."""
        return (self._folder / _ENROLMENT).exists()

    def identity(self) -> Identity:
        """Read who this host is.

        Raises:
            NotFoundError: `agent.not_enrolled`.
            HostError: `agent.identity_damaged`.
        """
        if not self.enrolled:
            raise NotFoundError(
                "agent.not_enrolled",
                f"{self._folder} holds no identity",
                hint="bulkhead agent enrol --controller URL --token-file FILE",
            )
        try:
            said = json.loads((self._folder / _ENROLMENT).read_bytes())
            certificate = x509.load_pem_x509_certificate((self._folder / _IDENTITY).read_bytes())
            return Identity(
                host=said["host"],
                deployment=said["deployment"],
                agents_url=said["agents_url"],
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
            )
        except (OSError, ValueError, KeyError, TypeError):
            # The cause is left out on purpose: the file holds a key.
            raise HostError(
                "agent.identity_damaged",
                f"{self._folder} cannot be read",
                hint="ask an operator for a token (bulkhead host join-token NAME), then: "
                "bulkhead agent enrol --again",
            ) from None

    def enrol(
        self, key: FreshKey, answer: EnrolAnswer, authority_pem: str, *, again: bool = False
    ) -> Identity:
        """Keep what enrolment gave, after a look at it.

        Args:
            again: in place of an identity of the same host, whose certificate ended or was taken back.

        Raises:
            ConflictError: `agent.enrolled`; `agent.another_host`: the old identity stays.
            LinkUntrusted: `link.untrusted`, `link.bad_certificate`.
            HostError: `agent.identity_unwritable`.
        """
        if self.enrolled and not again:
            raise already_enrolled(self._folder)
        if self.enrolled:
            self._same_host(answer)
        if _certificate(answer.ca_pem) != _certificate(authority_pem):
            raise LinkUntrusted("link.untrusted", "the answer names another authority than the join token")
        certificate = _checked(answer.certificate_pem, authority_pem, answer.host)
        self._write(_AUTHORITY, authority_pem.encode())
        self._write(_IDENTITY, key.with_certificate(certificate))
        said = answer.model_dump(include={"host", "deployment", "agents_url"})
        self._write(_ENROLMENT, json.dumps(said, sort_keys=True).encode())
        return self.identity()

    def _same_host(self, answer: EnrolAnswer) -> None:
        """What is on this machine belongs to who it was: only that one may come in again."""
        try:
            said = json.loads((self._folder / _ENROLMENT).read_bytes())
            was = (said["host"], said["deployment"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise HostError(
                "agent.identity_damaged",
                f"{self._folder / _ENROLMENT} cannot be read",
                hint="it says who this host is: restore it; or, if no tenant has anything here, remove it",
            ) from exc
        if was != (answer.host, answer.deployment):
            raise ConflictError(
                "agent.another_host",
                f"the token lets in {answer.host} of {answer.deployment}, here is {was[0]} of {was[1]}",
                hint=f"make a token of this host: bulkhead host join-token {was[0]}",
            )

    def renew(self, key: FreshKey, answer: RenewAnswer) -> Identity:
        """Keep the next certificate with its key, in place of the last.

        Raises:
            LinkUntrusted: `link.bad_certificate`: the old one stays.
            HostError: `agent.identity_unwritable`.
        """
        authority_pem = (self._folder / _AUTHORITY).read_text()
        certificate = _checked(answer.certificate_pem, authority_pem, self.identity().host)
        self._write(_IDENTITY, key.with_certificate(certificate))
        return self.identity()

    def forget(self) -> None:
        """Remove the identity; the file that says that there is one goes first.

        Raises:
            HostError: `agent.identity_unwritable`.
        """
        try:
            for name in (_ENROLMENT, _IDENTITY, _AUTHORITY):
                (self._folder / name).unlink(missing_ok=True)
        except OSError as exc:
            raise HostError("agent.identity_unwritable", f"{self._folder}: {exc.strerror}") from exc

    def tls(self) -> ssl.SSLContext:
        """Make this host's side of TLS: 1.3, its certificate shown, no authority believed but its own.

        Raises:
            HostError: `agent.identity_damaged`.
        """
        try:
            context = trusting((self._folder / _AUTHORITY).read_text())
            context.load_cert_chain(self._folder / _IDENTITY)
        except (OSError, ValueError):
            raise HostError("agent.identity_damaged", f"{self._folder} cannot be read") from None
        return context

    def _write(self, name: str, content: bytes) -> None:
        """Write a file whole, durably, for us alone."""
        path, fresh = self._folder / name, self._folder / f"{name}.new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
            directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            raise HostError("agent.identity_unwritable", f"{path}: {exc.strerror}") from exc


def trusting(authority_pem: str) -> ssl.SSLContext:
    """Make a client's side of TLS that believes one authority, and asks for the name that it dialled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority_pem)
    return context


def already_enrolled(folder: Path) -> BulkheadError:
    """Say that the host has an identity."""
    return ConflictError(
        "agent.enrolled",
        f"{folder} holds an identity already",
        hint="if its certificate ended or was taken back: bulkhead agent enrol --again; to belong to another "
        "deployment, drain the host, then: bulkhead agent leave",
    )


def ended(when: str = "") -> BulkheadError:
    """Say that this host's certificate is over, and the way on."""
    return HostError(
        "certificate.ended",
        f"this host's certificate has ended{when}; the controller does not let it in, and its VMs run on",
        hint="an operator makes a token (bulkhead host join-token NAME); then here: "
        "bulkhead agent enrol --again, and restart the agent",
    )


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as exc:
        raise _bad("it cannot be read") from exc


def _checked(pem: str, authority_pem: str, host: str) -> x509.Certificate:
    """Read a certificate that the controller gave us, and see that it is one of ours for this host."""
    certificate = _certificate(pem)
    try:
        certificate.verify_directly_issued_by(_certificate(authority_pem))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as exc:
        raise _bad("our authority has not signed it") from exc
    if [str(each.value) for each in names] != [f"bulkhead:host:{host}"]:
        raise _bad(f"it is not of {host}")
    return certificate


def _bad(why: str) -> LinkUntrusted:
    return LinkUntrusted("link.bad_certificate", f"the controller gave a certificate that is no use: {why}")
