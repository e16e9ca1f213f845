"""The NoCloud seed of an instance: which documents, saying what.

Pure: from the assignment to bytes. Writes nothing; `IsoSeeds` does. The reconciler calls it. Documents are
JSON, which is YAML too, so nothing that a tenant wrote can break out of its place.
"""

from __future__ import annotations

import json

from orchestrator.model.assignment import Instance, Port


def seed_files(instance: Instance) -> dict[str, bytes]:
    """Make user-data, meta-data and network-config.

    The instance id carries the generation: a new generation is a first boot for cloud-init.
    """
    meta = {"instance-id": f"{instance.id}-g{instance.generation}", "local-hostname": instance.name}
    ethernets = {f"eth{index}": _ethernet(index, port) for index, port in enumerate(instance.ports)}
    return {
        "meta-data": _document(meta),
        "network-config": _document({"version": 2, "ethernets": ethernets}),
        "user-data": instance.seed.user_data.encode(),
    }


def _ethernet(index: int, port: Port) -> dict[str, object]:
    return {
        "match": {"macaddress": port.mac},
        "set-name": f"eth{index}",
        "addresses": [f"{address.address}/{address.prefix_length}" for address in port.addresses],
        "mtu": port.mtu,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
    }


def _document(body: dict[str, object] | dict[str, str]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()
