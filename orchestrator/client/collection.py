"""One collection of the API, such as a tenant's instances: list, show, create, delete, act.

Decides only how a verb becomes a call: paths, paging, keys against making twice. What the objects say is the
API's. The CLI's nouns and other programs call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.errors import ServerError
from orchestrator.client.http import Answer, Call, Http, new_key, segment

JsonObject = dict[str, Any]

PAGE_SIZE = 1000
_DRY = {"dry_run": "true"}


class Collection:
    """The things under one path; `name` is always a name or an id."""

    def __init__(self, http: Http, path: str) -> None:
        self._http = http
        self.path = path

    def __getitem__(self, name: str) -> Thing:
        """Return one of them, without looking whether it exists."""
        return Thing(self._http, f"{self.path}/{segment(name)}")

    def page(self, query: Mapping[str, str] | None = None) -> JsonObject:
        """Return one page: `items` and `next_page_token`.

        Raises:
            ServerError: `api.unexpected`: that is no list.
        """
        body = self._http.call(Call("GET", self.path, query or {}, repeatable=True)).body
        items = body.get("items") if isinstance(body, dict) else None
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            raise ServerError("api.unexpected", f"{self.path} answered with something that is no list")
        return dict(body)

    def pages(self, query: Mapping[str, str] | None = None) -> Iterator[JsonObject]:
        """Return page after page; a token that comes twice ends it with an error, not with a loop."""
        asked = {"page_size": str(PAGE_SIZE), **(query or {})}
        seen: set[str] = set()
        while True:
            page = self.page(asked)
            yield page
            token = page.get("next_page_token")
            if not isinstance(token, str) or not token:
                return
            if token in seen:
                raise ServerError("api.unexpected", f"{self.path} gave the same page token twice")
            seen.add(token)
            asked = {**asked, "page_token": token}

    def __iter__(self) -> Iterator[JsonObject]:
        return self.all()

    def all(self, query: Mapping[str, str] | None = None) -> Iterator[JsonObject]:
        """Return every object, fetching pages as they are needed."""
        for page in self.pages(query):
            yield from page["items"]

    def create(self, body: JsonObject, *, dry_run: bool = False, key: str | None = None) -> Answer:
        """Make one thing, exactly once however often the call must be sent.

        Args:
            key: the `Idempotency-Key`; None draws one.
        """
        headers = {"Idempotency-Key": key or new_key()}
        query = _DRY if dry_run else {}
        return self._http.call(Call("POST", self.path, query, body, headers, repeatable=True))


class Thing:
    """One thing under its path."""

    def __init__(self, http: Http, path: str) -> None:
        self._http = http
        self.path = path

    def collection(self, name: str) -> Collection:
        """Return what stands below it."""
        return Collection(self._http, f"{self.path}/{name}")

    def part(self, name: str) -> Thing:
        """Return a part of it that there is one of, such as a tenant's quota."""
        return Thing(self._http, f"{self.path}/{name}")

    def get(self) -> JsonObject:
        """Return it as it is now."""
        return _object(self.read(), self.path)

    def read(self) -> Answer:
        """Return it with its tag."""
        return self._http.call(Call("GET", self.path, repeatable=True))

    def set(self, body: JsonObject, tag: str, *, dry_run: bool = False) -> Answer:
        """Change it, if it is still what `tag` names."""
        query = _DRY if dry_run else {}
        return self._http.call(Call("PUT", self.path, query, body, {"If-Match": tag}))

    def delete(self, *, dry_run: bool = False) -> Answer:
        """Take it away."""
        return self._http.call(Call("DELETE", self.path, _DRY if dry_run else {}))

    def act(self, verb: str, body: JsonObject | None = None, *, dry_run: bool = False) -> Answer:
        """Do something to it. Not sent again when its answer was lost: not every verb can be done twice."""
        headers = {"Idempotency-Key": new_key()}
        query = _DRY if dry_run else {}
        return self._http.call(Call("POST", f"{self.path}/actions/{segment(verb)}", query, body, headers))


def _object(answer: Answer, path: str) -> JsonObject:
    if not isinstance(answer.body, dict):
        raise ServerError("api.unexpected", f"{path} answered with something that is no object")
    return dict(answer.body)
