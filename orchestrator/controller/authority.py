"""The deployment's own certificate authority: which host is which, and that the controller is the controller.

Decides what a certificate says: subject and names are ours, never what a request asks for. The key lies in a
folder of mode 0700 as a file of mode 0600, or the authority refuses to open. Never decides who may enrol
(`controller.hosts` keeps tokens, certificates and their end) and never reads a clock: times come in. The
enrolment route and the agents' listener call it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import TypeAdapter, ValidationError

from orchestrator.model.errors import ConflictError, HostError, InvalidInputError, UnauthenticatedError
from orchestrator.model.ids import HostId
from orchestrator.model.join_token import JoinSecret, make_join_token, parse_join_token

__all__ = [
    "Authority",
    "HostCertificate",
    "JoinSecret",
    "ServerCertificate",
    "host_of",
    "make_join_token",
    "parse_join_token",
]

CA_DAYS = 3650
HOST_DAYS = 30
SERVER_DAYS = 397
#: An agent's clock may be behind ours by so much when it looks at a certificate made just now.
_BACKDATED = dt.timedelta(hours=1)
_HOST_URI = "bulkhead:host:"
_KEY_FILE, _CERTIFICATE_FILE = "ca.key", "ca.pem"
_MAX_CSR = 16 * 1024
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")

_HOST_ID: TypeAdapter[str] = TypeAdapter(HostId)


@dataclass(frozen=True)
class HostCertificate:
    """What a certificate of ours says about its holder.

    Args:
        fingerprint: SHA-256 of the DER form, hex: under which the store keeps it.
    """

    host: str
    serial: int
    not_after: dt.datetime
    fingerprint: str


@dataclass(frozen=True)
class ServerCertificate:
    """A listener's certificate with its authority's, and its key."""

    chain_pem: str
    key_pem: str = field(repr=False)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write chain and key (0600) for the TLS library, which reads only files; return their paths."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        chain, key = folder / "server.pem", folder / "server.key"
        _write(chain, self.chain_pem.encode(), replace=True)
        _write(key, self.key_pem.encode(), replace=True)
        return chain, key


class Authority:
    """Signs for one deployment."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._folder = folder
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, now: dt.datetime) -> Self:
        """Make a new authority for ten years.

        Raises:
            ConflictError: `authority.exists`.
            HostError: `authority.unwritable`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bulkhead authority")])
        certificate = (
            _builder(name, name, key.public_key(), key.public_key(), now - _BACKDATED, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            _write(folder / _KEY_FILE, _key_pem(key) + _pem(certificate), replace=False)
            _write(folder / _CERTIFICATE_FILE, _pem(certificate), replace=True)
        except FileExistsError as exc:
            raise ConflictError(
                "authority.exists",
                f"{folder} holds an authority already",
                hint="every host trusts it: a new one would shut all of them out",
            ) from exc
        except OSError as exc:
            raise HostError("authority.unwritable", f"{folder}: {exc.strerror}") from exc
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an authority.

        Raises:
            HostError: `authority.missing`, `authority.exposed` (others may read the key),
                `authority.damaged`.
        """
        try:
            for path, allowed in ((folder, 0o700), (folder / _KEY_FILE, 0o600)):
                _refuse_exposed(path, allowed)
            raw = (folder / _KEY_FILE).read_bytes()
            key = serialization.load_pem_private_key(raw, password=None)
            certificate = x509.load_pem_x509_certificate(raw)
            if not (folder / _CERTIFICATE_FILE).exists():
                _write(folder / _CERTIFICATE_FILE, _pem(certificate), replace=True)
        except FileNotFoundError as exc:
            raise HostError("authority.missing", f"{folder} holds no authority") from exc
        except OSError as exc:
            raise HostError("authority.damaged", f"{folder}: {exc.strerror}") from exc
        except ValueError:
            # The cause is left out on purpose: it may speak of the key.
            raise HostError("authority.damaged", f"{folder}: key or certificate cannot be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise HostError("authority.damaged", f"{folder}: the key is not the certificate's")
        return cls(folder, certificate, key)

    @property
    def certificate_path(self) -> Path:
        """Where the authority's own certificate lies alone, for TLS."""
        return self._folder / _CERTIFICATE_FILE

    @property
    def certificate_pem(self) -> str:
        """The authority's own certificate; no secret."""
        return _pem(self._certificate).decode()

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the hash of the certificate's DER form: what join tokens carry."""
        return f"sha256:{_digest(self._certificate.public_bytes(serialization.Encoding.DER))}"

    def sign_host(self, csr_pem: str, host_id: str, not_before: dt.datetime, days: int = HOST_DAYS) -> str:
        """Sign a host's key; of the request only the key is used.

        Raises:
            InvalidInputError: `csr.unreadable`, `csr.signature`, `csr.key_type`; `host.id`.
        """
        _checked_host_id(host_id)
        key = _key_of_request(csr_pem)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_id)])
        certificate = (
            _builder(subject, self._certificate.subject, key, self._key.public_key(), not_before, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(_names([x509.UniformResourceIdentifier(f"{_HOST_URI}{host_id}")]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate).decode()

    def server_certificate(
        self, names: Iterable[str], now: dt.datetime, days: int = SERVER_DAYS
    ) -> ServerCertificate:
        """Make a listener's key and certificate for DNS names and addresses, the first of them as subject.

        The chain holds the authority's certificate too, so that an agent without one yet can pin it.

        Raises:
            InvalidInputError: `authority.names`.
        """
        wanted = list(dict.fromkeys(names))
        if not wanted:
            raise InvalidInputError("authority.names", "a listener's certificate needs a name or an address")
        general = [_general_name(each) for each in wanted]
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[0][:64])])
        issuer, ours = self._certificate.subject, self._key.public_key()
        certificate = (
            _builder(subject, issuer, key.public_key(), ours, now - _BACKDATED, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_names(general), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return ServerCertificate(
            (_pem(certificate) + _pem(self._certificate)).decode(), _key_pem(key).decode()
        )


def host_of(der: bytes) -> HostCertificate:
    """Say which host a certificate names. The caller has it from TLS, which has checked who signed it.

    Raises:
        UnauthenticatedError: `certificate.no_host`: it is no host's, though of our authority perhaps.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        found = [str(each.value) for each in names]
        host = found[0].removeprefix(_HOST_URI)
        if len(found) != 1 or found[0] == host or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise ValueError
        _checked_host_id(host)
        expires = certificate.not_valid_after_utc
    except (ValueError, IndexError, x509.ExtensionNotFound, InvalidInputError) as exc:
        raise UnauthenticatedError("certificate.no_host", "the certificate names no host") from exc
    return HostCertificate(host, certificate.serial_number, expires, _digest(der))


def _key_of_request(csr_pem: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > _MAX_CSR:
        raise InvalidInputError("csr.unreadable", f"a request has at most {_MAX_CSR} characters")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError) as exc:
        raise InvalidInputError("csr.unreadable", "that is no certificate request in PEM form") from exc
    except UnsupportedAlgorithm as exc:
        raise InvalidInputError("csr.key_type", "the request's key is of no known kind") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInputError("csr.key_type", "a host's key is one of curve P-256")
    if not signed:
        raise InvalidInputError("csr.signature", "the request is not signed by the key that it names")
    return key


def _checked_host_id(host_id: str) -> None:
    try:
        _HOST_ID.validate_python(host_id)
    except ValidationError as exc:
        raise InvalidInputError("host.id", "that is no host's id", field="host") from exc


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    not_before: dt.datetime,
    days: int,
) -> x509.CertificateBuilder:
    """What all our certificates share; both key identifiers, as strict verifiers (Python 3.13) ask for."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(names: list[x509.GeneralName]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name):
        raise InvalidInputError("authority.names", f"{name[:64]!r} is no DNS name and no address")
    return x509.DNSName(name)


def _refuse_exposed(path: Path, allowed: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & ~allowed:
        raise HostError(
            "authority.exposed",
            f"{path} has mode {mode:04o}",
            hint=f"chmod {allowed:04o} {path}, and ask who has read it: it signs for every host",
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file that only we may read, durably; nobody ever sees half of it.

    Raises:
        FileExistsError: it is there and may not be replaced.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            fresh.rename(path)
        else:
            # A link, unlike a rename, never takes another's place.
            path.hardlink_to(fresh)
    finally:
        fresh.unlink(missing_ok=True)
