"""What Schemathesis needs to reach deep: a deployment with one of everything, under names that it knows.

Made anew where a call took something away, so that what comes later still finds it. Nothing here knows the
routes: a new one is called as soon as it stands in the committed document.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis import Case, Config
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema

from api import openapi
from orchestrator.controller import catalog, control, networks, people, volumes
from orchestrator.controller.caller import Caller
from orchestrator.controller.control import ControlSettings
from orchestrator.controller.gate import RateSettings
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.people import NewPrincipal
from orchestrator.controller.rates import Rate
from orchestrator.controller.switchboard import StreamLimits
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import NotFoundError
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.store import Store
from tests.api.deployment import FINGERPRINT, PEPPER, Clock, Deployment, app_over, key
from tests.unit.controller.platform import DIGEST, Platform

#: What stands in paths and bodies most of the time; ids take the names' places when a call is sent.
KNOWN = {
    "path.tenant": ["acme"],
    "path.instance": ["train"],
    "path.volume": ["data"],
    "path.network": ["lan"],
    "path.user": ["somebody"],
    "path.operator": ["somebody-else"],
    "path.host": ["node1"],
    "path.gpu": ["gpu-of-node1"],
    "path.operation": ["operation-of-train"],
    "path.token": ["token-of-somebody"],
    "path.image": ["probe"],
    "path.instance_type": ["small"],
    "body.type": ["small"],
    "body.image": ["probe"],
    "body.user": ["somebody"],
}
#: An event stream never ends: so long one is read.
STREAM_S = 0.15
#: No host dials here: so long a console or its log is waited for.
NO_HOST_S = 0.05
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
#: The ones it has by itself, and 412: any well-formed `If-Match` may name a version that is no more.
_ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]
_FOREVER = Rate(per_s=1_000_000, burst=1_000_000)


class _Front:
    """The app that is tested now: the schema is made once, databases and deployments come and go."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Bearer:
    """The token of who asks now."""

    token = ""

    def get(self, _case: Case, _context: object) -> str:
        return Bearer.token

    def set(self, case: Case, token: str, _context: object) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}


FRONT = _Front()
schemathesis.openapi.format(
    "ipv4network",
    strategies.builds(
        lambda block, bits, length: str(
            ipaddress.IPv4Network(
                (int(block.network_address) | bits % block.num_addresses, length), strict=False
            )
        ),
        strategies.sampled_from(
            [ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
        ),
        strategies.integers(0, 2**32 - 1),
        strategies.integers(16, 27),
    ),
)


def schema(examples: int, **generation: Any) -> BaseSchema:
    """The committed document, to be called with so many generated examples of each operation."""
    names = {place: place.replace(".", "-") for place in KNOWN}
    config = Config.from_dict(
        {
            "seed": 1,
            "generation": {"max-examples": examples, "database": "none", **generation},
            "dictionaries": {names[place]: {"values": values} for place, values in KNOWN.items()},
            "checks": {"positive_data_acceptance": {"expected-statuses": _ACCEPTED}},
            "parameters": {place: {"dictionary": names[place], "probability": 0.8} for place in KNOWN},
        }
    )
    found = schemathesis.openapi.from_path(openapi.FILE, config=config)
    found.app = FRONT
    found.auth(refresh_interval=None)(Bearer)
    return found


@dataclass
class World:
    """One deployment, and the ids of what has a name in `KNOWN`."""

    platform: Platform
    deployed: Deployment
    ids: dict[str, str] = field(default_factory=dict)

    def restore(self) -> None:
        """Make what is missing, and let everything happen that would happen by itself."""
        store, caller = self.platform.store, self.platform.acme
        for name, (find, make) in _things(caller).items():
            try:
                with store.reading() as tx:
                    self.ids[name] = find(tx).id
            except NotFoundError:
                with store.unit_of_work(CONTROLLER) as tx:
                    self.ids[name] = make(tx).id
        try:
            train = self.platform.instance(caller, "train")
        except NotFoundError:
            operation = self.platform.create(caller, "train")
            train = self.platform.instance(caller, "train")
            self.ids |= {"train": train.id, "operation-of-train": operation.id}
        if train.host_id is None:
            self.platform.settle()
        with store.reading() as tx:
            tokens = people.tokens(tx, people.get(tx, caller.tenant_id, "somebody"))
        if not any(each.revoked_ms is None for each in tokens):
            made = self.deployed.second_token("somebody", "somebody")
            self.ids["token-of-somebody"] = made.key_id

    def send(self, case: Case) -> None:
        """Send a call and hold the answer against the document."""
        for part, name in (case.path_parameters or {}).items():
            case.path_parameters[part] = self.ids.get(name, name) if isinstance(name, str) else name
        answers = case.operation.definition.raw["responses"].get("200", {}).get("content", {})
        more: dict[str, Any] = {}
        if "text/event-stream" in answers:
            more["timeout"] = STREAM_S
        if "text/plain" in answers:
            # A kept log comes from its host, and none dials here: 503 is the right answer, and documented.
            more["excluded_checks"] = [not_a_server_error]
        sent = (case.headers or {}).get("Idempotency-Key")
        if isinstance(sent, str) and _KEY.fullmatch(sent):
            # A key that was sent before with another body is refused, as it must be: `test_exactness`.
            more["headers"] = key()
        case.call_and_validate(**more)


def _things(caller: Caller) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """How to find each thing, and how to make it."""
    tenant = caller.tenant_id
    shape = dict.fromkeys(("vcpus", "gpus", "disk_gib", "threads_per_core"), 1)
    shape |= {"memory_mib": 256, "page_size_kib": 2048, "gpu_model": None, "isolation": "dedicated"}
    image = {"digest": DIGEST, "size_bytes": 1 << 20, "firmware": "bios", "tenant_id": None}

    def person(name: str, where: str | None, role: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        wanted = NewPrincipal(name=name, kind="user", roles=(role,))
        return lambda tx: people.get(tx, where, name), lambda tx: people.create(tx, where, wanted)

    return {
        "small": (
            lambda tx: catalog.get_type(tx, "small"),
            lambda tx: catalog.create_type(tx, name="small", **shape),
        ),
        "probe": (
            lambda tx: catalog.get_image(tx, caller, "probe"),
            lambda tx: catalog.create_image(tx, name="probe", **image),
        ),
        "lan": (
            lambda tx: networks.get(tx, caller, "lan"),
            lambda tx: networks.create(tx, caller, "lan", "10.0.0.0/24", networks.VlanRange()),
        ),
        "data": (
            lambda tx: volumes.get(tx, caller, "data"),
            lambda tx: volumes.create(tx, caller, "data", 1),
        ),
        "somebody": person("somebody", tenant, "tenant-admin"),
        "somebody-else": person("somebody-else", None, "operator"),
    }


def world(store: Store, folder: Path) -> World:
    """Make one; `operator` and `admin` are the people to ask as."""
    clock = Clock()
    store.clock = clock
    platform = Platform(store, folder)
    settings = ControlSettings(
        rates=RateSettings(token=_FOREVER, tenant=_FOREVER), streams=StreamLimits(dial_s=NO_HOST_S)
    )
    (folder / "keys").mkdir(mode=0o700)
    joined = control.join(
        store,
        pepper=PEPPER,
        ca_fingerprint=FINGERPRINT,
        keyring=Keyring(FileTenantKeys(folder / "keys")),
        settings=settings,
        clock=clock,
    )
    deployed = Deployment(joined, clock, app_over(joined), tenants={"acme": platform.acme.tenant_id})
    deployed.person("operator", None, "operator")
    deployed.person("admin", "acme", "tenant-admin")
    deployed.person("somebody", "acme", "tenant-admin")
    made = World(platform, deployed)
    with store.reading() as tx:
        gpu = GPUS.where(tx, PLATFORM)[0]
    made.ids |= {"acme": platform.acme.tenant_id, "node1": platform.host_id, "gpu-of-node1": gpu.id}
    made.ids["token-of-somebody"] = deployed.people["somebody"].key_id
    made.restore()
    return made
