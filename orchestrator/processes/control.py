"""The controller process: joins store, keys, authority, listeners and loops. Nothing here decides.

It is unprivileged and never loads libvirt. State that is not in the database: the authority's key, the key of
the tokens' hashes, and with the file backend the tenants' keys; all in files that only their owner may read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn

from api.agents import Heartbeats, agents_app
from api.app import public_app
from api.auth.jwks import fetcher
from api.auth.oidc import Issuer, OidcVerifier
from api.enrol import enrol_router
from api.fresh_secrets import draw_join_secret, join_token_text
from api.peer import MAX_STREAM_MESSAGE_BYTES, WebSockets, agents_config
from orchestrator.access.tokens import make_token, token_hash
from orchestrator.controller import hosts, people
from orchestrator.controller.authority import Authority
from orchestrator.controller.bell import CLOSING
from orchestrator.controller.control import Control, ControlSettings, join
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.loops import Loops
from orchestrator.controller.networks import VlanRange
from orchestrator.keys.backend import TenantKeys, open_backend
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import HostError, InvalidInputError
from orchestrator.processes.control_settings import ControlFile
from orchestrator.store.engine import Database
from orchestrator.store.listener import Listener
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.store import Store, wall_ms

_PEPPER = "token-pepper"
_GRACE_S = 5
#: Calls that wait to be accepted, as uvicorn has it.
_BACKLOG = 2048
#: Threads of a listener for what blocks; each holds one database connection at most. More would only wait for
#: each other: Python runs one at a time, and SQLite has one writer.
_WORKERS = 8


@dataclass(frozen=True)
class Parts:
    """A controller's parts before it listens."""

    settings: ControlFile
    control: Control
    authority: Authority
    verifier: OidcVerifier | None


def open_parts(settings: ControlFile) -> Parts:
    """Open or make everything that a controller keeps; safe to repeat.

    Raises:
        InvalidInputError: `store.url`, `keys.*`, `authority.*`, `oidc.*`.
    """
    # Before anything is made: what is set wrong is told first.
    verifier = _verifier(settings)
    state = settings.state_dir
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority(state / "authority")
    store = Store(Database(settings.database_url))
    store.prepare()
    control = join(
        store,
        pepper=_pepper(state / _PEPPER),
        ca_fingerprint=authority.fingerprint,
        keyring=Keyring(_keys(settings)),
        settings=ControlSettings(
            vlans=VlanRange(settings.vlan_first, settings.vlan_last),
            lease_s=settings.lease_s,
            silent_s=settings.silent_s,
            binders={each.url: frozenset(each.tenants) for each in settings.issuers},
        ),
    )
    return Parts(settings, control, authority, verifier)


def operator_token(parts: Parts, name: str, days: int = 30) -> str:
    """Let an operator in, or give one that is there a further token; for who may read the state folder."""
    store = parts.control.store
    with store.unit_of_work(CONTROLLER) as tx:
        found = people.find(tx, None, name)
        if found is None:
            wanted = people.NewPrincipal(name=name, kind="user", roles=("operator",))
            found = people.create(tx, None, wanted)
        key_id, secret = secrets.token_hex(8), secrets.token_bytes(32)
        new = people.NewToken(
            key_id=key_id,
            secret_hash=token_hash(parts.control.pepper, secret),
            name="by the controller's own command",
            scopes=("read", "write", "admin", "audit"),
            days=days,
        )
        people.add_token(tx, found, new)
    return make_token(key_id, secret)


def host_token(parts: Parts, name: str, disk_gib: int) -> str:
    """Let a host in, or the agent of one that is there once more; for who may read the state folder."""
    secret = draw_join_secret()
    with parts.control.store.unit_of_work(CONTROLLER) as tx:
        found = HOSTS.get(tx, PLATFORM, name) or hosts.create(tx, name, disk_gib)
        token = hosts.add_join_token(tx, found, secret)
    return join_token_text(token.id, secret, parts.control.ca_fingerprint)


class Running:
    """A controller that listens and works, in threads of this process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.heartbeats = Heartbeats()
        self._closing = threading.Event()
        self._loops = Loops(parts.control, self.heartbeats, f"{socket.gethostname()}-{os.getpid()}")
        database, bell = parts.control.store.database, parts.control.bell
        self._listener = Listener(database, bell, bell.ring_all) if database.kind == "postgresql" else None
        self._servers: list[tuple[uvicorn.Server, threading.Thread]] = []
        self.public_url = ""
        self.agents_url = ""

    def __enter__(self) -> Running:
        settings, authority = self.parts.settings, self.parts.authority
        now = dt.datetime.now(dt.UTC)
        tls = self.parts.settings.state_dir / "tls"
        chain, key = authority.server_certificate(settings.names, now).write(tls)
        agents = _bound(settings.agents_host, settings.agents_port)
        public = _bound(settings.public_host, settings.public_port)
        name = settings.names[0]
        self.agents_url = f"https://{name}:{agents.getsockname()[1]}"
        self.public_url = f"https://{name}:{public.getsockname()[1]}"
        # With several controllers on one database, an agent dials the one that holds the user's end.
        self.parts.control.switchboard.url = settings.streams_url or self.agents_url
        common: dict[str, Any] = {
            "log_config": None,
            "lifespan": "off",
            "timeout_graceful_shutdown": _GRACE_S,
        }
        self._serve(
            agents_config(
                agents_app(self.parts.control, authority, self.heartbeats, self._closing),
                host=settings.agents_host,
                port=settings.agents_port,
                certificate=chain,
                key=key,
                authority=authority.certificate_path,
                **common,
            ),
            agents,
        )
        app = public_app(self.parts.control, self.parts.verifier)
        app.include_router(enrol_router(self.parts.control, authority, self.agents_url))
        config = uvicorn.Config(
            app,
            ssl_certfile=chain,
            ssl_keyfile=key,
            server_header=False,
            ws=WebSockets,
            ws_max_size=MAX_STREAM_MESSAGE_BYTES,
            # What is typed and shown would leak through its compressed length.
            ws_per_message_deflate=False,
            **common,
        )
        self._serve(config, public)
        if self._listener is not None:
            self._listener.start()
        self._loops.start()
        return self

    def _serve(self, config: uvicorn.Config, bound: socket.socket) -> None:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(_served(server, bound),), daemon=True)
        thread.start()
        self._servers.append((server, thread))

    def __exit__(self, *_: object) -> None:
        """End: no new calls, open ones get a moment, loops finish their turn."""
        self._closing.set()
        self.parts.control.bell(frozenset({CLOSING}))
        # The public one first: whoever has a console open hears that we end, not that the stream broke.
        for server, thread in reversed(self._servers):
            server.should_exit = True
            thread.join(_GRACE_S * 3)
        self._loops.stop()
        if self._listener is not None:
            self._listener.stop()
        self.parts.control.store.database.dispose()

    def alive(self) -> bool:
        """Tell whether both listeners still run."""
        return all(thread.is_alive() for _server, thread in self._servers)


async def _served(server: uvicorn.Server, bound: socket.socket) -> None:
    # Each listener has a loop of its own, and each loop has workers of its own.
    anyio.to_thread.current_default_thread_limiter().total_tokens = _WORKERS
    await server.serve(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    """Listen before anything else starts: a taken port is told at once, and who knows the address may call.

    Who calls before the server's thread accepts is kept waiting, not refused.
    """
    # With its protocol named: asyncio sends small answers at once (TCP_NODELAY) only where it sees TCP; else
    # each answer waits 40 ms for the acknowledgement of its first half.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError as exc:
        bound.close()
        raise HostError(
            "listener.taken",
            f"cannot listen on {host} port {port}: {exc.strerror}",
            hint="choose another port",
        ) from exc
    return bound


def _authority(folder: Path) -> Authority:
    return Authority.open(folder) if folder.exists() else Authority.create(folder, dt.datetime.now(dt.UTC))


def _keys(settings: ControlFile) -> TenantKeys:
    if not settings.keys:
        (settings.state_dir / "keys").mkdir(mode=0o700, exist_ok=True)
    return open_backend(settings.keys_url, allow_file=settings.allow_keys_in_files)


def _verifier(settings: ControlFile) -> OidcVerifier | None:
    """Verifies tokens of the configured identity providers; None where there are none."""
    if not settings.issuers:
        return None
    found: list[Issuer] = []
    for number, each in enumerate(settings.issuers):
        try:
            issuer = Issuer(each.url, each.audience, each.keys_url, each.types)
        except InvalidInputError as exc:
            where = f"issuers[{number}].{exc.field}"
            raise InvalidInputError(exc.code, exc.message, field=where) from exc
        if issuer.url in [other.url for other in found]:
            raise InvalidInputError(
                "oidc.issuer", "that issuer stands there already", field=f"issuers[{number}].url"
            )
        found.append(issuer)
    return OidcVerifier(tuple(found), fetcher(settings.oidc_ca_file), wall_ms)


def _pepper(path: Path) -> bytes:
    """Read the key of the tokens' hashes; made once. Without it no token works any more."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(32))
            stream.flush()
            os.fsync(stream.fileno())
    return path.read_bytes()
