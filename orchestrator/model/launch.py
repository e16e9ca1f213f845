"""What the hypervisor driver needs to define one instance: the assignment's part and the host's choices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.model.assignment import Instance


@dataclass(frozen=True)
class LaunchSpec:
    """One instance, ready to be defined on this host."""

    instance: Instance
    deployment: str
    #: uid and gid of this VM's QEMU alone.
    uid: int
    #: Volume id to the path of its LUKS file.
    volume_paths: Mapping[str, str]
    #: The seed's ISO on tmpfs.
    seed_path: str
    #: Where the serial console is kept, on tmpfs.
    console_path: str
    #: Unix socket of the guest's virtio-serial channel `org.bulkhead.guest.0`.
    guest_socket: str
    bridge: str

    def digest(self) -> str:
        """Name this definition by content: same digest, same domain.

        The seed's text is left out: it is written apart and may hold what must not be told by a hash.
        """
        body = self.instance.model_dump(mode="json", exclude={"seed", "power"})
        whole = {
            "instance": body,
            "deployment": self.deployment,
            "uid": self.uid,
            "volumes": dict(self.volume_paths),
            "seed": self.seed_path,
            "console": self.console_path,
            "guest": self.guest_socket,
            "bridge": self.bridge,
        }
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
