"""Which hosts a playbook is run on, and how they are reached. Decides what of the input is no host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.model.errors import InvalidInputError

_HOST = re.compile(
    r"(?P<name>[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)"
    r"(?:=(?P<address>[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:.%]{2,64}\])(?::(?P<port>[0-9]{1,5}))?)?"
)


@dataclass(frozen=True)
class Login:
    """How the operator's ssh reaches hosts; None leaves it to ssh's own configuration and to the inventory.

    Args:
        accept_new_key: believe a host that this machine never spoke to; a changed key is still refused.
        become_password: for sudo on the hosts.
    """

    user: str | None = None
    key: Path | None = None
    accept_new_key: bool = False
    become_password: str | None = None


@dataclass(frozen=True)
class Targets:
    """What ansible is told of hosts.

    Args:
        inventory: an inventory file of the operator, or the inventory itself as JSON has it.
        limit: only these of it, by name; empty: all.
    """

    inventory: Path | dict[str, Any]
    limit: tuple[str, ...] = ()


def from_names(hosts: Sequence[str]) -> Targets:
    """Read hosts as they are typed: `NAME`, or `NAME=ADDRESS[:PORT]` where ssh does not know the name.

    Raises:
        InvalidInputError: `prepare.host`, `prepare.host_twice`.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in hosts:
        match = _HOST.fullmatch(text)
        port = int(match["port"]) if match and match["port"] else None
        if match is None or (port is not None and not 0 < port < 65536):
            raise InvalidInputError(
                "prepare.host",
                f"{text!r} is no host",
                field="HOST",
                hint="NAME or NAME=ADDRESS[:PORT]; a name is a-z, 0-9 and -, and begins with a letter",
            )
        if match["name"] in found:
            raise InvalidInputError("prepare.host_twice", f"{match['name']} is named twice", field="HOST")
        variables: dict[str, Any] = {"ansible_host": (match["address"] or match["name"]).strip("[]")}
        if port is not None:
            variables["ansible_port"] = port
        found[match["name"]] = variables
    if not found:
        raise InvalidInputError(
            "prepare.host", "no host is named", field="HOST", hint="name one, or give --inventory FILE"
        )
    return Targets({"all": {"hosts": found}})


def from_inventory(file: Path, hosts: Sequence[str]) -> Targets:
    """Take hosts from an inventory file of ansible's; `hosts` narrows it.

    Raises:
        InvalidInputError: `prepare.inventory`: it cannot be read; `prepare.host`: that is no name.
    """
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as exc:
        raise InvalidInputError("prepare.inventory", f"{file}: {exc.strerror}", field="--inventory") from exc
    for text in hosts:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}", text):
            raise InvalidInputError(
                "prepare.host", f"{text!r} is no name of an inventory", field="HOST",
                hint="addresses stand in the inventory: ansible_host, ansible_port",
            )  # fmt: skip
    return Targets(file.resolve(), tuple(hosts))
