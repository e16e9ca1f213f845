"""Bearer tokens of identity providers: is this one of ours, and who does it say that it is?

The header of a token is its sender's to write, so it chooses nothing but one key by its id, among the keys
that the configured address gives; algorithms follow from the key. `jku`, `x5u`, `jwk` and `x5c` are never
looked at. Whatever is wrong, the answer is the same. Decides nothing about rights; the app hands the identity
to the gate.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key

from orchestrator.model.errors import BulkheadError, HostError, InvalidInputError, UnauthenticatedError

MAX_TOKEN_BYTES = 8 * 1024
LEEWAY_S = 60
#: Keys are trusted for so long after they were fetched; fetched again from half of it on, so that a provider
#: may be away for the other half.
KEYS_TRUSTED_MS = 10 * 60_000
#: For a key id that nobody knows, which anybody can send.
REFETCH_MS = 60_000
#: After a fetch that failed.
RETRY_MS = 5_000
MAX_KEYS_BYTES = 256 * 1024
MAX_KEYS = 64
MAX_SUBJECT = 255
MAX_NAME = 128
MIN_RSA_BITS = 2048
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
#: By key type and curve: the one algorithm, and the public parts of such a key (RFC 7518 §6, RFC 8037 §2).
_KINDS: Mapping[tuple[str, str | None], tuple[str, tuple[str, ...]]] = {
    ("OKP", "Ed25519"): ("EdDSA", ("kty", "crv", "x")),
    ("EC", "P-256"): ("ES256", ("kty", "crv", "x", "y")),
    ("RSA", None): ("RS256", ("kty", "n", "e")),
}
ALGORITHMS = tuple(algorithm for algorithm, _ in _KINDS.values())


@dataclass(frozen=True)
class Issuer:
    """An identity provider that is trusted.

    Args:
        url: what its tokens say as `iss`, to the letter.
        audience: what they must say as `aud`.
        keys_url: where its JWK set is: https, http on this machine, or a file (file:///PATH).
        types: what they may say as `typ`, in small letters: `at+jwt` (RFC 9068), or `jwt` for older ones.

    Raises:
        InvalidInputError: `oidc.issuer`.
    """

    url: str
    audience: str
    keys_url: str
    types: tuple[str, ...] = ("at+jwt",)

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.keys_url)
            here = address.hostname in ("127.0.0.1", "::1", "localhost")
        except ValueError:
            address, here = urlsplit(""), False
        web = address.hostname and (address.scheme == "https" or (address.scheme == "http" and here))
        file = address.scheme == "file" and not address.netloc and len(address.path) > 1
        if not web and not file:
            raise InvalidInputError(
                "oidc.issuer", "keys come from an https address, or a file: file:///PATH", field="keys_url"
            )
        for name in ("url", "audience"):
            if not getattr(self, name):
                raise InvalidInputError("oidc.issuer", f"an issuer needs its {name}", field=name)
        if not self.types or not set(self.types) <= {"at+jwt", "jwt"}:
            raise InvalidInputError("oidc.issuer", "types are at+jwt and jwt", field="types")


@dataclass(frozen=True)
class OidcIdentity:
    """Who a provider vouches for: `subject` is never reused by its issuer; `name` is for people, or empty."""

    issuer: str
    subject: str
    name: str


class OidcVerifier:
    """Verifies bearer tokens of the configured issuers; can be shared by threads.

    Args:
        fetch: gets the content of an address, at most a little more than 256 KiB of it, with a deadline and
            without following redirects; raises OSError or a `BulkheadError` when it cannot.
        clock: milliseconds since the epoch.
    """

    def __init__(
        self, issuers: tuple[Issuer, ...], fetch: Callable[[str], bytes], clock: Callable[[], int]
    ) -> None:
        self._issuers = {issuer.url: (issuer, _KeySet(issuer, fetch, clock)) for issuer in issuers}
        self._clock = clock

    def verify(self, token: str) -> OidcIdentity:
        """Return who the token is about.

        Raises:
            UnauthenticatedError: `token.invalid`.
            HostError: `oidc.keys_unavailable`: the provider's keys cannot be had, so nobody can tell.
        """
        # Characters can be four bytes, but then it is no compact token either.
        if len(token) > MAX_TOKEN_BYTES:
            raise _invalid()
        parts = _COMPACT.fullmatch(token)
        if parts is None:
            raise _invalid()
        header = _decoded(parts[1])
        issuer, keys = self._issuer(_decoded(parts[2]))
        if not _may_be_ours(header, issuer):
            raise _invalid()
        found = keys.get(header["kid"])
        if found is None or found.algorithm != header["alg"]:
            raise _invalid()
        claims = _json(_verified(token, found))
        return self._identity(claims, issuer)

    def _issuer(self, unverified: dict[str, Any]) -> tuple[Issuer, _KeySet]:
        """Whose keys to try; the signature has to prove it afterwards."""
        claimed = unverified.get("iss")
        found = self._issuers.get(claimed) if isinstance(claimed, str) else None
        if found is None:
            raise _invalid()
        return found

    def _identity(self, claims: dict[str, Any], issuer: Issuer) -> OidcIdentity:
        now_s = self._clock() / 1000
        audience, subject = claims.get("aud"), claims.get("sub")
        audiences = audience if isinstance(audience, list) else [audience]
        expires, begins, issued = (_time(claims, name) for name in ("exp", "nbf", "iat"))
        if (
            claims.get("iss") != issuer.url
            or not all(isinstance(each, str) for each in audiences)
            or issuer.audience not in audiences
            or expires is None
            or expires <= now_s - LEEWAY_S
            or (begins is not None and begins > now_s + LEEWAY_S)
            or (issued is not None and issued > now_s + LEEWAY_S)
            or not _plain(subject, MAX_SUBJECT)
        ):
            raise _invalid()
        names = (claims.get("name"), claims.get("preferred_username"))
        name = next((each for each in names if _plain(each, MAX_NAME)), "")
        return OidcIdentity(issuer.url, str(subject), str(name))


@dataclass(frozen=True)
class _SigningKey:
    algorithm: str
    key: Key


class _KeySet:
    """One issuer's keys, fetched when they are needed and not more often than they may be."""

    def __init__(self, issuer: Issuer, fetch: Callable[[str], bytes], clock: Callable[[], int]) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str, _SigningKey] = {}
        self._fetched_ms: int | None = None
        self._next_fetch_ms: int | None = None

    def get(self, key_id: str) -> _SigningKey | None:
        """The key of this id; None when the issuer has none.

        Raises:
            HostError: `oidc.keys_unavailable`.
        """
        age_ms = self._age_ms()
        if age_ms is None or age_ms >= KEYS_TRUSTED_MS or key_id not in self._keys:
            with self._lock:
                self._refresh(key_id)
        elif age_ms >= KEYS_TRUSTED_MS // 2 and self._lock.acquire(blocking=False):
            try:
                self._refresh(key_id)
            finally:
                self._lock.release()
        age_ms = self._age_ms()
        if age_ms is None or age_ms >= KEYS_TRUSTED_MS:
            raise HostError(
                "oidc.keys_unavailable",
                f"the keys of {self._issuer.url} cannot be had now, so its tokens cannot be checked",
                hint="try again, or use a token of Bulkhead's own",
            )
        return self._keys.get(key_id)

    def _age_ms(self) -> int | None:
        return None if self._fetched_ms is None else self._clock() - self._fetched_ms

    def _refresh(self, key_id: str) -> None:
        """Fetch, unless it is too soon or another thread has just done it."""
        age_ms = self._age_ms()
        if age_ms is not None and age_ms < KEYS_TRUSTED_MS // 2 and key_id in self._keys:
            return
        now_ms = self._clock()
        if self._next_fetch_ms is not None and now_ms < self._next_fetch_ms:
            return
        # Before the fetch: one that raises what nobody foresaw must not be repeated at once either.
        self._next_fetch_ms = now_ms + RETRY_MS
        try:
            keys = _parse_keys(self._fetch(self._issuer.keys_url))
        except (OSError, ValueError, RecursionError, BulkheadError):
            return
        self._keys, self._fetched_ms, self._next_fetch_ms = keys, now_ms, now_ms + REFETCH_MS


class _Registry(jws.JWSRegistry):
    """joserfc's checks, with the one algorithm of the key and room for long headers, which choose nothing."""

    max_header_length = MAX_TOKEN_BYTES
    max_payload_length = MAX_TOKEN_BYTES

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithms=[algorithm], strict_check_header=False)
        self._algorithm = algorithm

    def get_alg(self, name: str) -> Any:
        # Without the library's warning at each call that EdDSA has a newer name (RFC 9864).
        if name != self._algorithm:
            raise ValueError("another algorithm than the key's")
        return self.algorithms[name]


def _verified(token: str, found: _SigningKey) -> bytes:
    """The payload, after its signature was checked."""
    try:
        return jws.deserialize_compact(token, found.key, registry=_Registry(found.algorithm)).payload
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _invalid() from exc


def _may_be_ours(header: dict[str, Any], issuer: Issuer) -> bool:
    """The header has what it needs, and nothing critical: we understand no extension (RFC 7515 §4.1.11)."""
    kind = header.get("typ")
    return (
        isinstance(kind, str)
        and kind.lower().removeprefix("application/") in issuer.types
        and header.get("alg") in ALGORITHMS
        and _plain(header.get("kid"), MAX_SUBJECT)
        and "crit" not in header
        and "b64" not in header
    )


def _parse_keys(content: bytes) -> Mapping[str, _SigningKey]:
    """Read a JWK set; keys that we cannot use are left out, two of one id are both."""
    if len(content) > MAX_KEYS_BYTES:
        raise ValueError("too long")
    listed = _object(json.loads(content)).get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("no list of keys")
    found: dict[str, _SigningKey] = {}
    double: set[str] = set()
    for each in listed:
        key = _parse_key(each)
        if key is None:
            continue
        if each["kid"] in found:
            double.add(each["kid"])
        found[each["kid"]] = key
    return {key_id: key for key_id, key in found.items() if key_id not in double}


def _parse_key(each: object) -> _SigningKey | None:
    if not isinstance(each, dict) or not _plain(each.get("kid"), MAX_SUBJECT):
        return None
    kind, curve = each.get("kty"), each.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None) or (kind, curve) not in _KINDS:
        return None
    algorithm, parts = _KINDS[kind, curve]
    operations = each.get("key_ops", ["verify"])
    if (
        each.get("use", "sig") != "sig"
        or each.get("alg", algorithm) != algorithm
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        return None
    try:
        # Only the public parts: a private key that somebody published by mistake is of no use here.
        key = import_key({part: each[part] for part in parts})
        public = key.public_key
        if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return _SigningKey(algorithm, key)


def _decoded(part: str) -> dict[str, Any]:
    try:
        return _json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError as exc:
        raise _invalid() from exc


def _json(content: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(content.decode(), object_pairs_hook=_once))
    except (ValueError, RecursionError) as exc:
        raise _invalid() from exc


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of a name that stands twice could read two values."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Seconds since the epoch; None when it is not said."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid()
    # JSON itself has no NaN, Python's reader does; and an integer may be too large for a float.
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid()
    return value


def _plain(value: object, most: int) -> bool:
    """A text that can be kept and shown: not empty, not too long, no control characters."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _invalid() -> UnauthenticatedError:
    return UnauthenticatedError(
        "token.invalid", "the token is not valid", hint="get a new one from your identity provider"
    )
