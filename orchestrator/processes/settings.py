"""The agent's settings: defaults, then `/etc/bulkhead/agent.toml`, then `BULKHEAD_AGENT_*` variables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.agent.host import AgentSettings
from orchestrator.model.cpus import parse_cpu_list
from orchestrator.model.doctor import ALL, check_accepted
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.gpus import check_models
from orchestrator.processes.toml_file import read_toml

DEFAULT_FILE = Path("/etc/bulkhead/agent.toml")
PREFIX = "BULKHEAD_AGENT_"
_ACCEPTED_VARIABLE = f"{PREFIX}DOCTOR_ACCEPTED"


def read_settings(
    file: Path, environment: Mapping[str, str] = os.environ, *, option: str = "--settings"
) -> AgentSettings:
    """Read the settings; an unknown name or an unreadable value is refused with its name.

    Args:
        option: by which the file is named on the command line.

    Raises:
        InvalidInputError: `settings.invalid`, `settings.missing`, `gpu_models.invalid`,
            `doctor.unknown_check`.
    """
    given = read_toml(file, DEFAULT_FILE, option)
    for name, value in environment.items():
        if name == _ACCEPTED_VARIABLE and ALL in value.replace(",", " ").split():
            raise InvalidInputError(
                "settings.invalid",
                f"{ALL} is taken from the settings file alone, where everybody who looks can see it",
                field=name,
                hint=f'doctor_accepted = ["{ALL}"] in {file}',
            )
        if name.startswith(PREFIX):
            given[name.removeprefix(PREFIX).lower()] = value
    known = {field.name: field for field in dataclasses.fields(AgentSettings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidInputError(
                "settings.invalid",
                f"there is no setting {name}",
                field=name,
                hint=f"known: {', '.join(sorted(known))}",
            )
        try:
            values[name] = _convert(str(known[name].type), value)
        except (TypeError, ValueError) as exc:
            raise InvalidInputError(
                "settings.invalid", f"{value!r} is no {known[name].type}", field=name
            ) from exc
    settings = AgentSettings(**values)
    check_models(settings.gpu_models)
    check_accepted(settings.doctor_accepted)
    return settings


def _convert(kind: str, value: object) -> object:
    if kind == "Path":
        return Path(str(value))
    if kind == "int":
        return int(str(value))
    if kind == "float":
        return float(str(value))
    if kind == "frozenset[int]":
        return parse_cpu_list(str(value))
    if kind == "tuple[str, ...]":
        return (
            tuple(map(str, value)) if isinstance(value, list) else tuple(str(value).replace(",", " ").split())
        )
    return str(value)
