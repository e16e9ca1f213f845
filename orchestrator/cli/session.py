"""One run of the command line: which server, as whom, which tenant, in which form.

Decides precedence alone: flag, then environment, then profile, then default. A profile's token goes only to
the profile's own server. Makes the one client; every noun's commands get it from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import typer

from orchestrator.cli import checks, profiles
from orchestrator.cli.columns import Column
from orchestrator.cli.flags import Flags
from orchestrator.cli.messages import say
from orchestrator.cli.output import Form, Output, check_columns, parse_output
from orchestrator.cli.profiles import Profile
from orchestrator.client import Client, TenantClient
from orchestrator.client.http import check_url
from orchestrator.model.errors import InvalidInputError, UnauthenticatedError


@dataclass(frozen=True)
class Access:
    """Where and as whom, after precedence."""

    url: str
    token: str = field(repr=False)
    ca: Path | None


def transport() -> httpx2.BaseTransport | None:
    """Return what carries calls; None is the network. Tests put a server in its place."""
    return None


class Session:
    """What commands work with."""

    def __init__(self, flags: Flags, *, quick: bool = False) -> None:
        self.flags = flags
        #: For completion: one try of a second.
        self._quick = quick
        self._profile: Profile | None = None

    @property
    def profile(self) -> Profile:
        """The profile in use; an empty one where none was made yet and none was asked for."""
        if self._profile is None:
            found = profiles.read_profiles(profiles.default_path())
            name = self.flags.profile
            if name is None and found.current not in found.by_name:
                self._profile = Profile()
            else:
                self._profile = found.get(found.current if name is None else name)
        return self._profile

    def access(self) -> Access:
        """Return where to call and as whom.

        Raises:
            InvalidInputError: `profile.no_url`, `profile.token_elsewhere`.
            UnauthenticatedError: `profile.no_token`.
        """
        own = self.profile
        url = self.flags.url or own.url
        if not url:
            raise InvalidInputError(
                "profile.no_url", "no server is set", hint="bulkhead login --url https://HOST:PORT"
            )
        url = check_url(url)
        token = os.environ.get("BULKHEAD_TOKEN", "").strip()
        if not token and own.token:
            if url != check_url(own.url):
                raise InvalidInputError(
                    "profile.token_elsewhere",
                    f"the profile's token is for {own.url} and is not sent to {url}",
                    hint="bulkhead profile list, or set BULKHEAD_TOKEN",
                )
            token = own.token
        if not token:
            raise UnauthenticatedError(
                "profile.no_token", "no token is set", hint=f"bulkhead login --url {url}"
            )
        ca = self.flags.ca or (Path(own.ca) if own.ca else None)
        return Access(url, token, ca)

    @contextmanager
    def client(self, access: Access | None = None) -> Iterator[Client]:
        """Open the client.

        Args:
            access: where and as whom; None is as flags, environment and profile say.
        """
        found = access or self.access()
        made = Client(
            found.url,
            found.token,
            ca=found.ca,
            transport=transport(),
            trace=say if self.flags.debug else lambda _line: None,
            tries=1 if self._quick else 4,
            read_s=1.0 if self._quick else 60.0,
        )
        with made:
            yield made

    def tenant_name(self, flag: str | None) -> str:
        """Return the tenant that is meant.

        Raises:
            InvalidInputError: `tenant.not_named`.
        """
        found = flag or self.profile.tenant
        if not found:
            raise InvalidInputError(
                "tenant.not_named",
                "which tenant is not said",
                field="--tenant",
                hint="give --tenant NAME, set BULKHEAD_TENANT, or bulkhead profile set --tenant NAME",
            )
        return found

    @contextmanager
    def tenant(self, flag: str | None) -> Iterator[tuple[Client, TenantClient]]:
        """Open the client with the tenant that is meant."""
        name = self.tenant_name(flag)
        checks.reference("tenant", name)
        with self.client() as client:
            yield client, client.tenant(name)

    def form(
        self, output: str | None, columns: str | None, no_headers: bool, known: tuple[Column, ...] = ()
    ) -> Form:
        """Return the form of the data.

        Args:
            known: the noun's columns, against which `--columns` is checked.
        """
        if output is not None:
            chosen = parse_output(output, "--output")
        elif self.profile.output:
            chosen = parse_output(self.profile.output, "profile.output")
        else:
            chosen = Output.TABLE
        form = Form(chosen, columns, not no_headers)
        check_columns(known, form)
        return form


def session_of(context: typer.Context) -> Session:
    """Return the session of this run; made for the first who asks.

    A command that calls no server asks for none, and begins without the library of HTTP.
    """
    root = context.find_root()
    if isinstance(root.obj, Flags):
        root.obj = Session(root.obj)
    assert isinstance(root.obj, Session)  # noqa: S101 - the root's callback ran before any command
    return root.obj
