"""OIDC tokens: the good one is let in, and every way around it that is known is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.auth.oidc import (
    KEYS_TRUSTED_MS,
    MAX_KEYS_BYTES,
    MAX_TOKEN_BYTES,
    REFETCH_MS,
    RETRY_MS,
    Issuer,
    OidcIdentity,
    OidcVerifier,
)
from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError, UnauthenticatedError

NOW_S = 1_760_000_000
ISS, AUD, URL = "https://id.example.org", "bulkhead", "https://id.example.org/keys"
ISSUER = Issuer(ISS, AUD, URL)
IDENTITY = OidcIdentity(ISS, "user-1", "Ann")

ED, OTHER_ED = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def okp(key: ed25519.Ed25519PrivateKey, **more: object) -> dict[str, Any]:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), **more}


def rsa_jwk(key: rsa.RSAPrivateKey, **more: object) -> dict[str, Any]:
    public = key.public_key().public_numbers()
    return {"kty": "RSA", "n": number(public.n), "e": number(public.e), **more}


def ec_jwk(**more: object) -> dict[str, Any]:
    point = EC.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64(point.x.to_bytes(32, "big")),
        "y": b64(point.y.to_bytes(32, "big")),
        **more,
    }


JWKS = [
    okp(ED, kid="ed", use="sig", alg="EdDSA"),
    ec_jwk(kid="ec"),
    rsa_jwk(RSA, kid="rsa", key_ops=["verify"]),
]


def sign_ed(message: bytes) -> bytes:
    return ED.sign(message)


def sign_other(message: bytes) -> bytes:
    return OTHER_ED.sign(message)


def sign_rsa(message: bytes) -> bytes:
    return RSA.sign(message, padding.PKCS1v15(), SHA256())


def sign_pss(message: bytes) -> bytes:
    return RSA.sign(message, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())


def sign_ec(message: bytes) -> bytes:
    r, s = decode_dss_signature(EC.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def header(**changes: object) -> dict[str, Any]:
    found = {"alg": "EdDSA", "kid": "ed", "typ": "at+jwt", **changes}
    return {name: value for name, value in found.items() if value is not None}


def claims(**changes: object) -> dict[str, Any]:
    found = {
        "iss": ISS,
        "aud": AUD,
        "sub": "user-1",
        "name": "Ann",
        "exp": NOW_S + 300,
        "nbf": NOW_S - 5,
        "iat": NOW_S - 5,
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def joined(head: bytes, body: bytes, sign=sign_ed) -> str:
    message = f"{b64(head)}.{b64(body)}"
    return f"{message}.{b64(sign(message.encode()))}"


def made(head: dict[str, Any] | None = None, body: dict[str, Any] | None = None, sign=sign_ed) -> str:
    spelled = (json.dumps(part).encode() for part in (head or header(), body or claims()))
    return joined(*spelled, sign)


class Provider:
    """An identity provider's key address, with a clock beside it."""

    def __init__(self, keys: list[dict[str, Any]] | None = None) -> None:
        self.keys = JWKS if keys is None else keys
        self.raw: bytes | None = None
        self.down: Exception | None = None
        self.now_ms = NOW_S * 1000
        self.fetched: list[str] = []

    def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        if self.down is not None:
            raise self.down
        return json.dumps({"keys": self.keys}).encode() if self.raw is None else self.raw

    def verifier(self, *issuers: Issuer) -> OidcVerifier:
        return OidcVerifier(issuers or (ISSUER,), self.fetch, lambda: self.now_ms)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def verifier(provider: Provider) -> OidcVerifier:
    return provider.verifier()


def refused(verifier: OidcVerifier, token: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        verifier.verify(token)
    error = caught.value
    assert (error.code, error.http_status, error.exit_code) == ("token.invalid", 401, 4)
    assert error.message == "the token is not valid", "the answer does not say what was wrong"


GOOD = {
    "EdDSA": made(),
    "ES256": made(header(alg="ES256", kid="ec"), sign=sign_ec),
    "RS256": made(header(alg="RS256", kid="rsa"), sign=sign_rsa),
    "typ in full": made(header(typ="application/at+JWT")),
    "audience of several": made(body=claims(aud=["other", AUD])),
    "just expired": made(body=claims(exp=NOW_S - 59)),
    "almost begun": made(body=claims(nbf=NOW_S + 60, iat=NOW_S + 60)),
    "no nbf, no iat": made(body=claims(nbf=None, iat=None)),
    "fractions": made(body=claims(exp=NOW_S + 0.5)),
    "huge exp": made(body=claims(exp=10**400)),
    "unknown header": made(header(future="x")),
    "second name": made(body=claims(name=None, preferred_username="Ann")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GOOD)
def test_a_good_token_is_let_in(verifier, name):
    assert verifier.verify(GOOD[name]) == IDENTITY


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_addresses_in_the_header_are_never_fetched(provider, verifier, name):
    """A good signature still counts; what the header points to is not looked at."""
    assert verifier.verify(made(header(**{name: "https://evil.example.org/keys"}))) == IDENTITY
    refused(verifier, made(header(**{name: "https://evil.example.org/keys"}), sign=sign_other))
    assert set(provider.fetched) == {URL}


def hs256(key: bytes):
    return lambda message: hmac.new(key, message, hashlib.sha256).digest()


RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RSA_DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def nothing(message: bytes) -> bytes:
    return b"x"


BAD = {
    # The algorithm.
    "alg none": made(header(alg="none"))[: made(header(alg="none")).rindex(".") + 1],
    "alg none, some signature": made(header(alg="none")),
    "alg None": made(header(alg="None"), sign=nothing),
    "no alg": made(header(alg=None)),
    "alg a list": made(header(alg=["EdDSA"])),
    "alg null": joined(b'{"alg":null,"kid":"ed","typ":"at+jwt"}', json.dumps(claims()).encode()),
    "HS256 with the RSA key as PEM": made(header(alg="HS256", kid="rsa"), sign=hs256(RSA_PEM)),
    "HS256 with the RSA key as DER": made(header(alg="HS256", kid="rsa"), sign=hs256(RSA_DER)),
    "HS256 with the modulus": made(header(alg="HS256", kid="rsa"), sign=hs256(JWKS[2]["n"].encode())),
    "HS256 with nothing": made(header(alg="HS256"), sign=hs256(b"")),
    "PS256": made(header(alg="PS256", kid="rsa"), sign=sign_pss),
    "RS512 said, RS256 made": made(header(alg="RS512", kid="rsa"), sign=sign_rsa),
    "RS256 under the Ed25519 key": made(header(alg="RS256", kid="ed"), sign=sign_rsa),
    "ES256 under the RSA key": made(header(alg="ES256", kid="rsa"), sign=sign_ec),
    "EdDSA under the EC key": made(header(kid="ec")),
    "Ed25519, the newer name": made(header(alg="Ed25519")),
    "ES256 with zeros": made(header(alg="ES256", kid="ec"), sign=lambda _: bytes(64)),
    "ES256 in DER": made(header(alg="ES256", kid="ec"), sign=lambda m: EC.sign(m, ec.ECDSA(SHA256()))),
    # The signature.
    "somebody else's signature": made(sign=sign_other),
    "no signature": made(sign=lambda _: b""),
    "cut signature": made()[:-1],
    "longer signature": made() + "A",
    "changed claims": ".".join(
        [made().split(".")[0], b64(json.dumps(claims(sub="root")).encode()), made().split(".")[2]]
    ),
    "changed header": ".".join([b64(json.dumps(header(x=1)).encode()), *made().split(".")[1:]]),
    # Keys that the sender brings along.
    "jwk": made(header(jwk=okp(OTHER_ED)), sign=sign_other),
    "jwk of the same id": made(header(jwk=okp(OTHER_ED, kid="ed")), sign=sign_other),
    "jku": made(header(jku="https://evil.example.org/jwks"), sign=sign_other),
    "jku of ours with a tail": made(header(jku=f"{URL}@evil.example.org"), sign=sign_other),
    "x5u": made(header(x5u="https://evil.example.org/cert"), sign=sign_other),
    "x5c": made(header(x5c=[b64(b"cert")]), sign=sign_other),
    # The key's id.
    "kid unknown": made(header(kid="nobody"), sign=sign_other),
    "kid a path": made(header(kid="../../../../dev/null"), sign=hs256(b"")),
    "kid a statement": made(header(kid="' OR '1'='1"), sign=sign_other),
    "kid an address": made(header(kid="https://evil.example.org/k"), sign=sign_other),
    "kid with NUL": made(header(kid="ed\0")),
    "kid empty": made(header(kid="")),
    "kid a number": made(header(kid=0)),
    "kid a list": made(header(kid=["ed"])),
    "kid an object": made(header(kid={"ed": 1})),
    "no kid": made(header(kid=None)),
    # The header's other words.
    "typ JWT": made(header(typ="JWT")),
    "typ of an id token": made(header(typ="id+jwt")),
    "typ dpop": made(header(typ="dpop+jwt")),
    "no typ": made(header(typ=None)),
    "typ a list": made(header(typ=["at+jwt"])),
    "crit": made(header(crit=["exp"])),
    "crit of what is known": made(header(crit=["kid"])),
    "crit a number": made(header(crit=7)),
    "b64 false": made(header(b64=False, crit=["b64"])),
    "zip": made(header(alg="dir", enc="A256GCM")),
    # Claims.
    "wrong aud": made(body=claims(aud="another")),
    "aud a prefix": made(body=claims(aud="bulkhead2")),
    "aud with a slash": made(body=claims(aud="bulkhead/")),
    "aud of others": made(body=claims(aud=["another", "third"])),
    "aud empty": made(body=claims(aud=[])),
    "aud with a number": made(body=claims(aud=[AUD, 1])),
    "aud an object": made(body=claims(aud={AUD: 1})),
    "wrong iss": made(body=claims(iss="https://evil.example.org")),
    "iss with a slash": made(body=claims(iss=ISS + "/")),
    "iss in capitals": made(body=claims(iss=ISS.upper())),
    "iss a list": made(body=claims(iss=[ISS])),
    "expired": made(body=claims(exp=NOW_S - 60)),
    "long expired": made(body=claims(exp=0)),
    "exp a text": made(body=claims(exp=str(NOW_S + 300))),
    "exp true": made(body=claims(exp=True)),
    "exp infinite": made(body=claims(exp=float("inf"))),
    "exp no number": made(body=claims(exp=float("nan"))),
    "exp overflowing": joined(
        json.dumps(header()).encode(), json.dumps(claims(exp=7777)).replace("7777", "1e999").encode()
    ),
    "exp with 5000 digits": joined(
        json.dumps(header()).encode(), json.dumps(claims(exp=7777)).replace("7777", "9" * 5000).encode()
    ),
    "not begun": made(body=claims(nbf=NOW_S + 61)),
    "nbf true": made(body=claims(nbf=True)),
    "iat true": made(body=claims(iat=True)),
    "nbf a text": made(body=claims(nbf="0")),
    "made in the future": made(body=claims(iat=NOW_S + 61)),
    "sub empty": made(body=claims(sub="")),
    "sub a number": made(body=claims(sub=7)),
    "sub with NUL": made(body=claims(sub="user-1\0")),
    "sub with a line end": made(body=claims(sub="user-1\n")),
    "sub half a pair": made(body=claims(sub="\ud800")),
    "sub too long": made(body=claims(sub="x" * 256)),
    "sub null": joined(
        json.dumps(header()).encode(), json.dumps(claims(sub=7777)).replace("7777", "null").encode()
    ),
    **{f"no {name}": made(body=claims(**{name: None})) for name in ("iss", "aud", "sub", "exp")},
    # The form.
    "empty": "",
    "dots": "..",
    "one part": "abc",
    "two parts": ".".join(made().split(".")[:2]),
    "four parts": made() + ".abc",
    "five parts": made() + ".abc.abc",
    "empty header": "." + made().split(".", 1)[1],
    "NUL inside": made().replace(".", "\0.", 1),
    "NUL behind": made() + "\0",
    "NUL in the header": joined(json.dumps(header()).encode() + b"\0", json.dumps(claims()).encode()),
    "NUL in the claims": joined(json.dumps(header()).encode(), b"\0" + json.dumps(claims()).encode()),
    "line end": made() + "\n",
    "space": " " + made(),
    "padding": made().replace(".", "=.", 1),
    "other letters": "é" + made(),
    "half a pair": "\ud800" + made(),
    "JSON form": json.dumps({"payload": "", "signatures": []}),
    "header no JSON": joined(b"{", json.dumps(claims()).encode()),
    "header a list": joined(b"[]", json.dumps(claims()).encode()),
    "header null": joined(b"null", json.dumps(claims()).encode()),
    "header not UTF-8": joined(b'{"alg":"\xff"}', json.dumps(claims()).encode()),
    "header twice": joined(
        b'{"alg":"none","alg":"EdDSA","kid":"ed","typ":"at+jwt"}', json.dumps(claims()).encode()
    ),
    "claims no JSON": joined(json.dumps(header()).encode(), b"{"),
    "claims a list": joined(json.dumps(header()).encode(), json.dumps([claims()]).encode()),
    "claims a text": joined(json.dumps(header()).encode(), b'"sub"'),
    "claims twice": joined(
        json.dumps(header()).encode(), b'{"sub":"root",' + json.dumps(claims()).encode().removeprefix(b"{")
    ),
    "claims in UTF-16": joined(json.dumps(header()).encode(), json.dumps(claims()).encode("utf-16")),
    "deep claims": joined(json.dumps(header()).encode(), b"[" * 5000),
    "deep header": joined(b'{"a":' * 1000, json.dumps(claims()).encode()),
    "huge": made(body=claims(more="x" * MAX_TOKEN_BYTES)),
    "huge in halves": made(header(more="x" * 3000), claims(more="x" * 3000)),
    "very huge": "a." * 5_000_000,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused(verifier, name):
    refused(verifier, BAD[name])
    assert verifier.verify(GOOD["EdDSA"]) == IDENTITY, "and harms nobody else"


def test_a_good_token_may_be_as_large_as_the_limit(verifier):
    token = made(body=claims(more="x" * 5600))
    assert len(token) < MAX_TOKEN_BYTES
    assert verifier.verify(token) == IDENTITY
    refused(verifier, made(body=claims(more="x" * 6000)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_changed_character_is_let_in(verifier, place):
    """One in each part's every character; only a signature's last one carries bits that say nothing."""
    parts = made().split(".")
    for at in range(len(parts[place]) - 1):
        other = "B" if parts[place][at] == "A" else "A"
        changed = [*parts]
        changed[place] = parts[place][:at] + other + parts[place][at + 1 :]
        refused(verifier, ".".join(changed))


def test_each_issuer_says_which_types_it_makes(provider):
    verifier = provider.verifier(Issuer(ISS, AUD, URL, types=("jwt",)))
    assert verifier.verify(made(header(typ="JWT"))) == IDENTITY
    refused(verifier, made(header(typ="at+jwt")))


def test_one_issuers_key_does_not_sign_for_another():
    other = Issuer("https://other.example.org", AUD, "https://other.example.org/keys")
    sets = {URL: [okp(ED, kid="ed")], other.keys_url: [okp(OTHER_ED, kid="ed")]}
    verifier = OidcVerifier(
        (ISSUER, other), lambda url: json.dumps({"keys": sets[url]}).encode(), lambda: NOW_S * 1000
    )
    assert verifier.verify(made()) == IDENTITY
    assert verifier.verify(made(body=claims(iss=other.url), sign=sign_other)).issuer == other.url
    refused(verifier, made(body=claims(iss=other.url)))
    refused(verifier, made(sign=sign_other))


def test_without_issuers_nobody_is_let_in(provider):
    refused(OidcVerifier((), provider.fetch, lambda: NOW_S * 1000), made())
    assert provider.fetched == []


@pytest.mark.parametrize("name", ["x" * 129, "Ann\n", "", 7, ["Ann"], None])
def test_a_name_that_cannot_be_shown_is_left_out(verifier, name):
    assert verifier.verify(made(body=claims(name=name))) == OidcIdentity(ISS, "user-1", "")


@pytest.mark.parametrize(
    "key",
    [
        okp(ED),
        okp(ED, kid=""),
        okp(ED, kid=7),
        okp(ED, kid="ed", use="enc"),
        okp(ED, kid="ed", alg="RS256"),
        okp(ED, kid="ed", key_ops=["sign"]),
        okp(ED, kid="ed", key_ops="verify"),
        okp(ED, kid="ed", x="AAAA"),
        okp(ED, kid="ed", x=7),
        okp(ED, kid="ed", crv="Ed448"),
        okp(ED, kid="ed", crv=["Ed25519"]),
        okp(ED, kid="ed", kty="oct", k=b64(b"x" * 32)),
        okp(ED, kid="ed", kty=None),
        {"kty": "oct", "kid": "ed", "k": b64(b"x" * 32)},
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed"},
        "ed",
        None,
    ],
)
def test_keys_that_are_not_for_this_are_left_out_and_the_others_stay(key):
    verifier = Provider([key, *JWKS[1:]]).verifier()
    refused(verifier, GOOD["EdDSA"])
    assert verifier.verify(GOOD["RS256"]) == IDENTITY


@pytest.mark.filterwarnings("ignore:Key size")
def test_a_weak_key_is_left_out():
    verifier = Provider([rsa_jwk(WEAK, kid="rsa")]).verifier()
    refused(
        verifier,
        made(header(alg="RS256", kid="rsa"), sign=lambda m: WEAK.sign(m, padding.PKCS1v15(), SHA256())),
    )


def test_two_keys_of_one_id_are_none():
    for keys in ([okp(ED, kid="ed"), okp(OTHER_ED, kid="ed")], [okp(OTHER_ED, kid="ed"), okp(ED, kid="ed")]):
        refused(Provider(keys).verifier(), made())


def test_a_published_private_key_verifies_like_its_public_part():
    seed = b64(ED.private_bytes_raw())
    assert Provider([okp(ED, kid="ed", d=seed)]).verifier().verify(made()) == IDENTITY


def unavailable(verifier: OidcVerifier, token: str = GOOD["EdDSA"]) -> None:
    with pytest.raises(HostError) as caught:
        verifier.verify(token)
    assert (caught.value.code, caught.value.retryable) == ("oidc.keys_unavailable", True)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":null}',
        b"\xff",
        b"[" * 100_000,
        b'{"keys":[' + b",".join([b"{}"] * 65) + b"]}",
        json.dumps({"keys": JWKS, "more": "x" * MAX_KEYS_BYTES}).encode(),
    ],
)
def test_an_address_that_gives_no_keys_lets_nobody_in(provider, verifier, raw):
    provider.raw = raw
    unavailable(verifier)
    provider.raw = None
    provider.now_ms += RETRY_MS
    assert verifier.verify(GOOD["EdDSA"]) == IDENTITY


@pytest.mark.parametrize("error", [OSError("down"), BulkheadError("http.failed", "x"), TimeoutError()])
def test_a_provider_that_is_away_is_asked_again_soon_but_not_at_once(provider, verifier, error):
    provider.down = error
    for _ in range(5):
        unavailable(verifier)
    assert len(provider.fetched) == 1
    provider.now_ms += RETRY_MS
    unavailable(verifier)
    assert len(provider.fetched) == 2


def test_keys_are_fetched_once_and_again_after_their_time(provider, verifier):
    for _ in range(5):
        verifier.verify(GOOD["EdDSA"])
        verifier.verify(GOOD["RS256"])
    assert provider.fetched == [URL]
    provider.now_ms += KEYS_TRUSTED_MS // 2 - 1
    verifier.verify(made(body=claims(exp=NOW_S + 9999)))
    assert len(provider.fetched) == 1
    provider.now_ms += 1
    verifier.verify(made(body=claims(exp=NOW_S + 9999)))
    assert len(provider.fetched) == 2


def test_a_short_absence_is_not_noticed_and_a_long_one_lets_nobody_in(provider, verifier):
    token = made(body=claims(exp=NOW_S + 9999))
    verifier.verify(token)
    provider.down = OSError("down")
    provider.now_ms += KEYS_TRUSTED_MS - 1
    assert verifier.verify(token) == IDENTITY
    provider.now_ms += 1
    unavailable(verifier, token)
    provider.now_ms += RETRY_MS
    provider.down = None
    assert verifier.verify(token) == IDENTITY


def test_a_key_taken_back_stops_working(provider, verifier):
    token = made(body=claims(exp=NOW_S + 9999))
    verifier.verify(token)
    provider.keys = JWKS[1:]
    provider.now_ms += KEYS_TRUSTED_MS
    refused(verifier, token)


def test_a_new_key_is_found_and_unknown_ids_cause_one_fetch_a_minute(provider, verifier):
    new = made(header(kid="new"), sign=sign_other)
    verifier.verify(GOOD["EdDSA"])
    for number_of in range(50):
        refused(verifier, made(header(kid=f"k{number_of}"), sign=sign_other))
    assert len(provider.fetched) == 1
    provider.keys = [*JWKS, okp(OTHER_ED, kid="new")]
    refused(verifier, new)
    provider.now_ms += REFETCH_MS
    assert verifier.verify(new) == IDENTITY
    for number_of in range(50):
        refused(verifier, made(header(kid=f"k{number_of}"), sign=sign_other))
    assert len(provider.fetched) == 2


def test_many_at_once_cause_one_fetch_and_wait_for_it(provider):
    entered, go = threading.Event(), threading.Event()

    def slow(url: str) -> bytes:
        entered.set()
        assert go.wait(60)
        return provider.fetch(url)

    verifier = OidcVerifier((ISSUER,), slow, lambda: provider.now_ms)
    found: list[OidcIdentity] = []
    threads = [threading.Thread(target=lambda: found.append(verifier.verify(made()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert found == [IDENTITY] * 8
    assert provider.fetched == [URL]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"keys_url": "http://id.example.org/keys"}, "keys_url"),
        ({"keys_url": "http://127.0.0.1.example.org/keys"}, "keys_url"),
        ({"keys_url": "file://elsewhere/etc/keys"}, "keys_url"),
        ({"keys_url": "file:///"}, "keys_url"),
        ({"keys_url": ""}, "keys_url"),
        ({"keys_url": "https://["}, "keys_url"),
        ({"url": ""}, "url"),
        ({"audience": ""}, "audience"),
        ({"types": ()}, "types"),
        ({"types": ("id+jwt",)}, "types"),
    ],
)
def test_issuers_that_could_not_be_trusted_are_refused(changes, field):
    with pytest.raises(InvalidInputError) as caught:
        Issuer(**{"url": ISS, "audience": AUD, "keys_url": URL, **changes})
    assert (caught.value.code, caught.value.field) == ("oidc.issuer", field)
    assert Issuer(ISS, AUD, "http://127.0.0.1:8080/keys").types == ("at+jwt",)
