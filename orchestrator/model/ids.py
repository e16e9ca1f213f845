"""Ids: a prefix that says the noun, then 1 to 40 of a-z, 0-9 and inner underscores; never reused."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

_BODY = r"[a-z0-9](?:[a-z0-9_]{0,38}[a-z0-9])?"

DeploymentId = Annotated[str, StringConstraints(pattern=rf"^dep_{_BODY}$", max_length=44)]
HostId = Annotated[str, StringConstraints(pattern=rf"^hst_{_BODY}$", max_length=44)]
TenantId = Annotated[str, StringConstraints(pattern=rf"^ten_{_BODY}$", max_length=44)]
InstanceId = Annotated[str, StringConstraints(pattern=rf"^vm_{_BODY}$", max_length=43)]
GpuId = Annotated[str, StringConstraints(pattern=rf"^gpu_{_BODY}$", max_length=44)]
VolumeId = Annotated[str, StringConstraints(pattern=rf"^vol_{_BODY}$", max_length=44)]
NetworkId = Annotated[str, StringConstraints(pattern=rf"^net_{_BODY}$", max_length=44)]
PortId = Annotated[str, StringConstraints(pattern=rf"^prt_{_BODY}$", max_length=44)]
