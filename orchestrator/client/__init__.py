"""The Python SDK: a thin client of the HTTP API. Objects are the API's JSON, errors are the project's tree.

    with Client("https://bulkhead.example:8443", token) as client:
        answer = client.tenant("acme").instances.create({"name": "train", ...})
        client.wait(answer, client.tenant("acme").operations)

Decides nothing that the server decides. The CLI stands on it; it knows neither the controller nor the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx2

from orchestrator.client import events as _events
from orchestrator.client import operations as _operations
from orchestrator.client.collection import Collection, JsonObject, Thing
from orchestrator.client.errors import ServerError
from orchestrator.client.events import Event
from orchestrator.client.http import Answer, Call, Endpoint, Http, segment

if TYPE_CHECKING:
    from orchestrator.client.console import Console

__all__ = ["Answer", "Client", "Collection", "Event", "JsonObject", "TenantClient", "Thing"]

DEFAULT_TIMEOUT_S = 600.0


class TenantClient(Thing):
    """One tenant and its things."""

    def __init__(self, http: Http, name: str) -> None:
        super().__init__(http, f"/v1/tenants/{segment(name)}")
        self.quota = self.part("quota")
        self.users = self.collection("users")
        self.tokens = self.collection("tokens")
        self.networks = self.collection("networks")
        self.volumes = self.collection("volumes")
        self.instances = self.collection("instances")
        self.operations = self.collection("operations")
        self.requests = self.collection("requests")


class Client:
    """The API of one server, as the holder of one token. Not for several threads at once.

    Args:
        url: `https://HOST:PORT`; http only to this machine itself.
        ca: file with the authority of the server's certificate; None trusts what the system trusts.
        transport: what carries the calls instead of the network.
        trace: is told each call and its status, never a header or body.
        tries, read_s: how often a call is sent at most, and how long its answer may take.

    Raises:
        InvalidInputError: `api.url`, `api.ca`, `token.malformed`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: Path | None = None,
        transport: httpx2.BaseTransport | None = None,
        trace: Callable[[str], None] = lambda _line: None,
        tries: int = 4,
        read_s: float = 60.0,
    ) -> None:
        endpoint = Endpoint(url, token, ca)
        self.http = Http(endpoint, transport=transport, trace=trace, tries=tries, read_s=read_s)
        self.tenants = Collection(self.http, "/v1/tenants")
        self.instance_types = Collection(self.http, "/v1/instance-types")
        self.images = Collection(self.http, "/v1/images")
        self.deployment = Thing(self.http, "/v1/deployment")
        self.hosts = Collection(self.http, "/v1/hosts")
        self.gpus = Collection(self.http, "/v1/gpus")
        self.requests = Collection(self.http, "/v1/requests")
        self.operators = Collection(self.http, "/v1/operators")
        self.operations = Collection(self.http, "/v1/operations")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self.http.close()

    def tenant(self, name: str) -> TenantClient:
        """Return one tenant's part of the API, without looking whether it exists."""
        return TenantClient(self.http, name)

    def whoami(self) -> JsonObject:
        """Return whose token this is and what it may do."""
        return Thing(self.http, "/v1/whoami").get()

    def raw(self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None) -> Answer:
        """Send any call; GET is repeated when its answer is lost, nothing else is."""
        return self.http.call(Call(method, path, query or {}, body, repeatable=method == "GET"))

    def wait(
        self,
        answer: Answer,
        operations: Collection,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        told: Callable[[JsonObject], None] = lambda _operation: None,
    ) -> JsonObject:
        """Wait for the operation that a 202 named; see `operations.wait`."""
        path = _operations.path_of(answer, operations.path)
        if isinstance(answer.body, dict):
            told(answer.body)
        return _operations.wait(self.http, path, timeout_s, told=told)

    def wait_for(
        self,
        operation: Thing,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        told: Callable[[JsonObject], None] = lambda _operation: None,
    ) -> JsonObject:
        """Wait for an operation whose id is known."""
        return _operations.wait(self.http, operation.path, timeout_s, told=told)

    def events(
        self,
        tenant: str | None,
        *,
        after: str | None = None,
        from_start: bool = False,
        until_end: bool = False,
        kind: str | None = None,
    ) -> Iterator[Event]:
        """Follow a tenant's events, or (None) the platform's; see `events.follow`."""
        path = "/v1/events" if tenant is None else f"/v1/tenants/{segment(tenant)}/events"
        query = {} if kind is None else {"kind": kind}
        return _events.follow(self.http, path, query, after=after, from_start=from_start, until_end=until_end)

    def console(self, tenant: str, instance: str) -> AbstractAsyncContextManager[Console]:
        """Make a ticket for an instance's serial console now; entered within seconds, it opens the console.

        Raises:
            BulkheadError: the server refuses: `console.not_running`, `console.host_unreachable`, ...
        """
        # Only here: every other command starts without it.
        from orchestrator.client.console import open_console

        made = self.tenant(tenant).instances[instance].act("console").body
        ticket = made.get("ticket") if isinstance(made, dict) else None
        if not isinstance(ticket, str):
            raise ServerError("api.unexpected", "the server made no ticket")
        return open_console(self.http.endpoint, ticket)

    def console_log(self, tenant: str, instance: str, *, last_bytes: int | None = None) -> Iterator[bytes]:
        """Return what an instance's console said, as its host kept it, bytes by bytes.

        Args:
            last_bytes: so much of its end; None is all that is kept.
        """
        query = {} if last_bytes is None else {"last_bytes": str(last_bytes)}
        return self.http.pieces(f"{self.tenant(tenant).instances[instance].path}/console-log", query)

    def audit(self, tenant: str | None, query: dict[str, str] | None = None) -> Iterator[str]:
        """Return a tenant's audit export, or (None) the platform's, line by line."""
        path = "/v1/audit" if tenant is None else f"/v1/tenants/{segment(tenant)}/audit"
        return self.http.lines(path, query or {})
