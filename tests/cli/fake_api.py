"""An API in process: real calls over a transport of the library, answered from a table of objects.

Plays no rules: what is asked for is looked up, what is made answers with what a test put in. Keeps every
request, so that a test can say what was sent, and that nothing was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx2

from tests.cli import objects

TOKEN = "bh_tok_test_" + "s" * 43 + "_00000000"
URL = "https://api.test:8443"

T = "/v1/tenants/acme"
Reply = httpx2.Response | Callable[[httpx2.Request], httpx2.Response]


def problem(status: int, code: str, detail: str = "so it is", **more: Any) -> httpx2.Response:
    body = {
        "type": f"urn:bulkhead:problem:{code}",
        "title": "title",
        "status": status,
        "code": code,
        "detail": detail,
        "retryable": status in (429, 503),
        "request_id": "req-77",
        **more,
    }
    return httpx2.Response(status, json=body, headers={"content-type": "application/problem+json"})


class FakeApi:
    """What answers, and what was asked."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.lists: dict[str, list[dict[str, Any]]] = _lists()
        self.singles: dict[str, dict[str, Any]] = {
            "/v1/deployment": objects.deployment(),
            "/v1/whoami": objects.whoami(),
            T: objects.tenant(),
            f"{T}/quota": objects.quota(),
            f"{T}/instances/train/evidence": objects.evidence(),
            "/v1/hosts/gpu-02": objects.host_detail(),
            "/v1/hosts/gpu-02/doctor": objects.host_doctor(),
            "/v1/hosts/gpu-02/evidence": objects.host_evidence(),
        }
        #: By `METHOD PATH`, before everything else; a list is used up from its front.
        self.replies: dict[str, list[Reply]] = {}
        self.page_size = 1000

    @property
    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._handle)

    @property
    def calls(self) -> list[str]:
        return [f"{each.method} {each.url.path}" for each in self.requests]

    def body(self, number: int = -1) -> Any:
        return json.loads(self.requests[number].content)

    def reply(self, call: str, *replies: Reply) -> None:
        self.replies.setdefault(call, []).extend(replies)

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "token.unknown", "nobody knows this token")
        found = self.replies.get(f"{request.method} {request.url.path}")
        if found:
            reply = found.pop(0) if len(found) > 1 else found[0]
            return reply(request) if callable(reply) else _copy(reply)
        return self._play(request)

    def _play(self, request: httpx2.Request) -> httpx2.Response:
        path, dry = unquote(request.url.path), request.url.params.get("dry_run") == "true"
        if request.method == "GET":
            return self._get(path, request)
        long_work = "/instances" in path or ("/volumes" in path and request.method == "DELETE")
        if long_work:
            operation = objects.operation(state="running")
            where = f"/v1/tenants/{objects.ACME}/operations/{operation['id']}"
            self.singles[where] = objects.operation()
            return httpx2.Response(
                200 if dry else 202, json=operation, headers={} if dry else {"location": where}
            )
        if request.method == "DELETE":
            return httpx2.Response(204)
        if "/actions/" in path:
            return self._get(path.split("/actions/")[0], request)
        if request.method == "PUT":
            return self._get(path.removesuffix("/roles"), request)
        return httpx2.Response(201, json=self._made(path))

    def _made(self, path: str) -> dict[str, Any]:
        if path.endswith("/tokens"):
            return {**objects.token(), "token": "bh_made_once"}
        made = dict(self.lists[path][0])
        return {**made, "join_token": "bhj_made_once"} if path == "/v1/hosts" else made

    def _get(self, path: str, request: httpx2.Request) -> httpx2.Response:
        if path in self.lists:
            return self._page(self.lists[path], request)
        if path in self.singles:
            return httpx2.Response(200, json=self.singles[path], headers={"etag": '"7"'})
        base, _, name = path.rpartition("/")
        for item in self.lists.get(base, []):
            if name in (item.get("name"), item.get("id"), item.get("key_id")):
                return httpx2.Response(200, json=item, headers={"etag": '"7"'})
        return problem(404, "thing.unknown", f"there is no {name}")

    def _page(self, items: list[dict[str, Any]], request: httpx2.Request) -> httpx2.Response:
        size = min(self.page_size, int(request.url.params.get("page_size", 100)))
        begin = int(request.url.params.get("page_token", 0))
        end = begin + size
        following = str(end) if end < len(items) else None
        return httpx2.Response(200, json={"items": items[begin:end], "next_page_token": following})


def _copy(reply: httpx2.Response) -> httpx2.Response:
    """A response can be read once; a reply may be given again."""
    return httpx2.Response(reply.status_code, headers=reply.headers, content=reply.content)


def _lists() -> dict[str, list[dict[str, Any]]]:
    short = {
        "code": "gpu.short",
        "message": "no host has room: GPUs are short on 2 of 2 hosts (1 GPU needed, at most 0 free on one)",
        "retryable": True,
        "hint": "wait until others give back what they hold, or ask for another instance type",
    }
    stuck = {"code": "device.bind_timeout", "message": "the GPU did not bind", "retryable": False}
    return {
        "/v1/tenants": [objects.tenant(), objects.tenant(objects.LONG_NAME, objects.GLOBEX)],
        f"{T}/instances": [
            objects.instance("train", objects.VM1),
            objects.instance(objects.LONG_NAME, objects.VM2, "pending", ports=[], error=short),
            objects.instance("serve", objects.VM3, "needs_attention", error=stuck),
        ],
        f"{T}/volumes": [
            objects.volume("data", "vol_a2b3c4d5e6f7g2h3i4j5"),
            objects.volume(
                "train-boot", "vol_k2l3m4n5o6p7q2r3s4t5", boot=True, instance_id=objects.VM1, state="in_use"
            ),
        ],
        f"{T}/networks": [objects.network()],
        f"{T}/operations": [objects.operation(), objects.failed(objects.OP2)],
        f"{T}/requests": [objects.request("req_a2b3c4d5e6f7g2h3i4j5", objects.VM2)],
        f"{T}/users": [objects.user()],
        f"{T}/tokens": [objects.token()],
        "/v1/images": [objects.image()],
        "/v1/instance-types": [objects.instance_type()],
        "/v1/hosts": [
            objects.host("gpu-01", objects.HOST1),
            objects.host("gpu-02", objects.HOST2, "cordoned", "memory errors on DIMM 3, ticket 4711"),
        ],
        "/v1/gpus": [
            objects.gpu("gpu_a2b3c4d5e6f7g2h3i4j5", "exposed"),
            objects.gpu("gpu_k2l3m4n5o6p7q2r3s4t5", "quarantined", "its reset hangs"),
        ],
        "/v1/requests": [objects.request("req_a2b3c4d5e6f7g2h3i4j5", objects.VM2)],
        "/v1/operators": [{**objects.user("root"), "tenant_id": None, "roles": ["operator"]}],
        "/v1/operators/root/tokens": [objects.token()],
        "/v1/operations": [objects.operation(kind="host.drain", subject_kind="host", tenant_id=None)],
    }
