"""The controller's settings: defaults, then a TOML file, then `BULKHEAD_CONTROLLER_*` variables.

Secrets lie in files of the state folder that only their owner may read; settings name the places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.model.errors import InvalidInputError
from orchestrator.processes.toml_file import read_toml

DEFAULT_FILE = Path("/etc/bulkhead/controller.toml")
_TENANT = r"^(?:ten_[a-z0-9]{1,40}|[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)$"


class OidcIssuer(BaseModel):
    """An identity provider whose tokens are believed; `api.auth.oidc.Issuer` says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    audience: str
    #: Where its public keys are: https, or a file on this machine (file:///PATH).
    keys_url: str
    types: tuple[str, ...] = ("at+jwt",)
    #: Ids or names of the tenants whose own admins may bind its subjects to users. Elsewhere operators do.
    tenants: tuple[Annotated[str, Field(pattern=_TENANT)], ...] = ()


class ControlFile(BaseSettings):
    """What an operator may set."""

    model_config = SettingsConfigDict(env_prefix="BULKHEAD_CONTROLLER_", extra="forbid", frozen=True)

    #: Holds the authority, the key of the tokens' hashes, and with SQLite the database.
    state_dir: Path = Path("/var/lib/bulkhead/controller")
    #: `sqlite:///FILE` or `postgresql://...`; empty is SQLite in the state folder.
    database: str = Field(default="", repr=False)
    public_host: str = "127.0.0.1"
    public_port: int = Field(default=8443, ge=0, le=65535)
    agents_host: str = "127.0.0.1"
    agents_port: int = Field(default=8444, ge=0, le=65535)
    #: Names and addresses by which users and agents reach the listeners; their certificates carry them.
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    #: With several controllers behind one name: how agents reach this very one, for consoles, by a name
    #: of `names`. Empty is as they reach any.
    streams_url: str = Field(default="", pattern=r"^(https://[^\s/]+/?)?$")
    #: Where tenants' keys lie; empty is a folder of the state folder, which must be allowed on purpose.
    keys: str = ""
    allow_keys_in_files: bool = False
    #: Identity providers; a token of theirs is let in when its issuer and subject are somebody's here.
    issuers: tuple[OidcIssuer, ...] = ()
    #: Further authorities (PEM) that vouch for the addresses of issuers' keys, beside the system's.
    oidc_ca_file: Path | None = None
    vlan_first: int = Field(default=100, ge=1, le=4094)
    vlan_last: int = Field(default=4000, ge=1, le=4094)
    #: A controller that is gone keeps the scheduler's work from the others for so long, in seconds.
    lease_s: float = Field(default=15.0, ge=1, le=600)
    #: A host that no controller heard for so long, in seconds, is unreachable. Agents speak every ten.
    silent_s: float = Field(default=90.0, ge=1, le=86_400)

    @property
    def database_url(self) -> str:
        """The database's URL."""
        return self.database or f"sqlite:///{self.state_dir / 'bulkhead.db'}"

    @property
    def keys_url(self) -> str:
        """The key backend's URL."""
        return self.keys or f"file://{self.state_dir / 'keys'}"


def read_control_settings(file: Path, *, option: str = "--settings", **overrides: Any) -> ControlFile:
    """Read the settings; an unknown name or a wrong value is refused with its name.

    Args:
        option: by which the file is named on the command line.
        overrides: settings that win over everything else.

    Raises:
        InvalidInputError: `settings.invalid`, `settings.missing`.
    """
    given = read_toml(file, DEFAULT_FILE, option)
    try:
        # Variables win over the file: what pydantic-settings takes from the environment is only overridden by
        # what a caller passes on purpose.
        from_environment = ControlFile().model_dump(exclude_unset=True)
        return ControlFile(**{**given, **from_environment, **overrides})
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError("settings.invalid", f"{name}: {first['msg']}", field=name) from None
