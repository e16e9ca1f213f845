"""A deployment to call: the public app over a real store, two tenants, and a token for each role."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import public_app, routes_only
from api.calls import Verifier
from api.fresh_secrets import FreshToken
from orchestrator.controller import catalog, control, hosts, people, tenants
from orchestrator.controller.control import Control, ControlSettings
from orchestrator.controller.gate import RateSettings
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.people import NewPrincipal, NewToken
from orchestrator.controller.rates import Rate
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.principal import Principal
from orchestrator.store.store import Store

PEPPER = b"p" * 32
FINGERPRINT = "sha256:" + "a" * 64
DIGEST = "sha256:" + "1" * 64
ALL = ("read", "write", "admin", "audit")
DAY_MS = 86_400_000
PLENTY = {
    "instances": 50,
    "vcpus": 100,
    "memory_mib": 100_000,
    "gpus": 50,
    "volumes": 100,
    "disk_gib": 1000,
    "networks": 10,
}
_numbers = itertools.count(1)


class Clock:
    """The store's time, moved by tests."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@functools.cache
def _routes() -> FastAPI:
    return routes_only()


def app_over(control: Control, verifier: Verifier | None = None) -> FastAPI:
    """`public_app` with the routes of one app for all of them: they hold nothing of a deployment.

    FastAPI works out an app's routes at its first request, which takes longer than most tests.
    """
    app = public_app(control, verifier)
    app.router = _routes().router
    return app


def key() -> dict[str, str]:
    """A new idempotency key."""
    return {"Idempotency-Key": f"key-{next(_numbers)}"}


@dataclass
class Person:
    """Somebody with a token."""

    who: Principal
    text: str
    key_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


@dataclass
class Deployment:
    """The whole of it; `people` by name."""

    control: Control
    clock: Clock
    app: FastAPI
    people: dict[str, Person] = field(default_factory=dict)
    tenants: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.control.store

    def client(self, name: str | None = None) -> TestClient:
        """A client as somebody, or as nobody."""
        headers = self.people[name].headers if name is not None else {}
        return TestClient(self.app, headers=headers, raise_server_exceptions=False)

    def person(self, name: str, tenant: str | None, *roles: str, scopes: tuple[str, ...] = ALL) -> Person:
        tenant_id = self.tenants[tenant] if tenant else None
        fresh = FreshToken.draw(PEPPER)
        with self.store.unit_of_work(CONTROLLER) as tx:
            who = people.create(tx, tenant_id, NewPrincipal(name=name, kind="user", roles=roles))
            people.add_token(tx, who, NewToken(fresh.key_id, fresh.secret_hash, "first", scopes, 90))
        self.people[name] = Person(who, fresh.text, fresh.key_id)
        return self.people[name]

    def second_token(self, name: str, owner: str, *, scopes: tuple[str, ...] = ALL, days: int = 90) -> Person:
        """Another token of the same person, under a name of its own."""
        fresh, who = FreshToken.draw(PEPPER), self.people[owner].who
        with self.store.unit_of_work(CONTROLLER) as tx:
            people.add_token(tx, who, NewToken(fresh.key_id, fresh.secret_hash, "more", scopes, days))
        self.people[name] = Person(who, fresh.text, fresh.key_id)
        return self.people[name]


def deploy(
    store: Store,
    *,
    rate: Rate | None = None,
    settings: dict[str, Any] | None = None,
    keys: Path | None = None,
) -> Deployment:
    """Make one with tenants acme and globex, and people such as `operator` and `acme-admin`.

    Args:
        keys: a folder for tenants' keys; None leaves the controller without a key backend.
    """
    clock = Clock()
    store.clock = clock
    plenty = rate or Rate(per_s=1_000_000, burst=1_000_000)
    chosen = ControlSettings(rates=RateSettings(token=plenty, tenant=plenty), **(settings or {}))
    joined = control.join(
        store,
        pepper=PEPPER,
        ca_fingerprint=FINGERPRINT,
        keyring=None if keys is None else Keyring(FileTenantKeys(keys)),
        settings=chosen,
        clock=clock,
    )
    made = Deployment(joined, clock, app_over(joined))
    shape = {"page_size_kib": 2048, "threads_per_core": 1, "gpu_model": None, "isolation": "dedicated"}
    with store.unit_of_work(CONTROLLER) as tx:
        for name in ("acme", "globex"):
            made.tenants[name] = tenants.create(tx, name, PLENTY).id
        catalog.create_type(tx, name="small", vcpus=1, memory_mib=256, gpus=1, disk_gib=1, **shape)
        catalog.create_image(
            tx, name="debian", digest=DIGEST, size_bytes=1 << 20, firmware="uefi", tenant_id=None
        )
        hosts.create(tx, "node1", 100)
    made.person("operator", None, "operator")
    made.person("platform-auditor", None, "auditor")
    for tenant in ("acme", "globex"):
        made.person(f"{tenant}-admin", tenant, "tenant-admin")
        made.person(f"{tenant}-member", tenant, "member")
        made.person(f"{tenant}-auditor", tenant, "auditor")
    return made
