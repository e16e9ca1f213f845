"""The authority: who may read its key, what it signs, and what it never takes over from a request."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.controller.authority import Authority, host_of
from orchestrator.model.errors import BulkheadError

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
HOST = "hst_abc"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", NOW)


def request(key: object = None, name: str = "whoever", *extensions: x509.ExtensionType) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, hashed).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type]


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


def code_of(refused: pytest.ExceptionInfo[BulkheadError]) -> str:
    return refused.value.code


def test_key_is_for_its_owner_alone_and_opens_as_it_was_made(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "ca"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert [each.name for each in sorted(folder.iterdir())] == ["ca.key", "ca.pem"]

    opened = Authority.open(folder)

    assert opened.fingerprint == authority.fingerprint
    assert opened.fingerprint.startswith("sha256:")
    assert b"PRIVATE" not in (folder / "ca.pem").read_bytes()


def test_second_authority_is_refused_and_the_first_stays(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(BulkheadError) as refused:
        Authority.create(tmp_path / "ca", NOW)

    assert code_of(refused) == "authority.exists"
    assert Authority.open(tmp_path / "ca").fingerprint == authority.fingerprint


@pytest.mark.parametrize(("name", "mode"), [("ca.key", 0o640), ("ca.key", 0o604), (".", 0o750), (".", 0o701)])
def test_key_that_others_reach_is_refused(tmp_path: Path, authority: Authority, name: str, mode: int) -> None:
    (tmp_path / "ca" / name).chmod(mode)

    with pytest.raises(BulkheadError) as refused:
        Authority.open(tmp_path / "ca")

    assert code_of(refused) == "authority.exposed"


def test_nothing_and_rubbish_do_not_open(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(BulkheadError) as missing:
        Authority.open(tmp_path / "other")
    key = (tmp_path / "ca" / "ca.key").read_text()
    (tmp_path / "ca" / "ca.key").write_text(key[:100])
    with pytest.raises(BulkheadError) as damaged:
        Authority.open(tmp_path / "ca")

    assert (code_of(missing), code_of(damaged)) == ("authority.missing", "authority.damaged")
    assert damaged.value.__cause__ is None


def test_key_and_certificate_of_two_authorities_do_not_open(tmp_path: Path, authority: Authority) -> None:
    Authority.create(tmp_path / "other", NOW)
    ours, other = (tmp_path / name / "ca.key" for name in ("ca", "other"))
    end = "-----END PRIVATE KEY-----\n"
    ours.write_text(ours.read_text().split(end)[0] + end + other.read_text().split(end)[1])

    with pytest.raises(BulkheadError) as refused:
        Authority.open(tmp_path / "ca")

    assert code_of(refused) == "authority.damaged"


def test_creation_that_was_cut_off_is_finished_by_opening(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca" / "ca.pem").unlink()

    opened = Authority.open(tmp_path / "ca")

    assert opened.certificate_path.read_text() == authority.certificate_pem


def test_host_certificate_says_what_we_say_whatever_was_asked_for(authority: Authority) -> None:
    greedy = request(
        None,
        "hst_other",
        x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("bulkhead:host:hst_other"), x509.DNSName("controller")]
        ),
        x509.BasicConstraints(ca=True, path_length=3),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )

    made = x509.load_pem_x509_certificate(authority.sign_host(greedy, HOST, NOW).encode())

    assert made.subject.rfc4514_string() == f"CN={HOST}"
    get = made.extensions.get_extension_for_class
    assert [each.value for each in get(x509.SubjectAlternativeName).value] == [f"bulkhead:host:{HOST}"]
    assert list(get(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert get(x509.BasicConstraints).value.ca is False
    assert get(x509.KeyUsage).value.key_cert_sign is False
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (NOW, NOW + dt.timedelta(days=30))
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem.encode()))


def test_two_certificates_have_two_serial_numbers(authority: Authority) -> None:
    asked = request()

    first, second = (host_of(der(authority.sign_host(asked, HOST, NOW))) for _ in range(2))

    assert first.serial != second.serial
    assert first.fingerprint != second.fingerprint


def tampered() -> str:
    """A request whose signature is of another key."""
    first, second = (
        x509.load_pem_x509_csr(request().encode()).public_bytes(serialization.Encoding.DER) for _ in range(2)
    )
    # The signed part of one, the signature (its last 64 bytes and a little) of the other.
    cut = len(first) - 60
    mixed = first[:cut] + second[len(second) - 60 :]
    import base64

    body = base64.encodebytes(mixed).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (lambda: "no request", "csr.unreadable"),
        (lambda: "", "csr.unreadable"),
        (lambda: request() + "x" * 20000, "csr.unreadable"),
        (lambda: request(ec.generate_private_key(ec.SECP384R1())), "csr.key_type"),
        (lambda: request(rsa.generate_private_key(65537, 2048)), "csr.key_type"),
        (lambda: request(ed25519.Ed25519PrivateKey.generate()), "csr.key_type"),
        (tampered, "csr.signature"),
    ],
)
def test_bad_requests_are_refused(authority: Authority, asked: object, code: str) -> None:
    with pytest.raises(BulkheadError) as refused:
        authority.sign_host(asked(), HOST, NOW)  # type: ignore[operator]

    assert code_of(refused) == code


@pytest.mark.parametrize(
    "host", ["", "hst_", "vm_abc", "hst_A", "hst_a/../b", "hst_abc,hst_other", "hst_a\n"]
)
def test_only_a_hosts_id_is_signed(authority: Authority, host: str) -> None:
    with pytest.raises(BulkheadError) as refused:
        authority.sign_host(request(), host, NOW)

    assert code_of(refused) == "host.id"


def test_host_of_reads_what_was_signed(authority: Authority) -> None:
    found = host_of(der(authority.sign_host(request(), HOST, NOW, days=7)))

    assert found.host == HOST
    assert found.not_after == NOW + dt.timedelta(days=7)
    assert len(found.fingerprint) == 64


def self_made(
    *names: x509.GeneralName, usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def test_host_of_refuses_what_names_no_host(authority: Authority) -> None:
    good = uri(f"bulkhead:host:{HOST}")
    assert host_of(self_made(good)).host == HOST
    listener = authority.server_certificate(["controller"], NOW).chain_pem
    bad = [
        b"",
        b"rubbish",
        der(listener),
        der(authority.certificate_pem),
        self_made(uri(f"other:host:{HOST}")),
        self_made(uri("bulkhead:host:vm_abc")),
        self_made(x509.DNSName(HOST)),
        self_made(good, uri("bulkhead:host:hst_other")),
        self_made(good, usage=ExtendedKeyUsageOID.SERVER_AUTH),
    ]
    for each in bad:
        with pytest.raises(BulkheadError) as refused:
            host_of(each)
        assert code_of(refused) == "certificate.no_host"


def test_listeners_certificate_has_its_names_and_its_authority_behind_it(
    authority: Authority, tmp_path: Path
) -> None:
    made = authority.server_certificate(["ctl.example", "10.0.0.1", "fd00::1", "ctl.example"], NOW)
    chain, key = made.write(tmp_path / "server")

    leaf, issuer = x509.load_pem_x509_certificates(chain.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["ctl.example", "10.0.0.1", "fd00::1"]
    leaf.verify_directly_issued_by(issuer)
    assert f"sha256:{issuer.fingerprint(hashes.SHA256()).hex()}" == authority.fingerprint
    assert leaf.not_valid_before_utc < NOW
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(made)


@pytest.mark.parametrize("names", [[], [""], ["-x"], ["a b"], ["ä.example"], ["x" * 300]])
def test_listeners_names_must_be_names(authority: Authority, names: list[str]) -> None:
    with pytest.raises(BulkheadError) as refused:
        authority.server_certificate(names, NOW)

    assert code_of(refused) == "authority.names"
