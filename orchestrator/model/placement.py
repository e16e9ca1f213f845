"""Where one instance runs, in every detail: exact CPUs, memory by node, exact GPUs.

`placement` finds it, the scheduler commits it with its claims, and the assignment's instance is built of it.
It is kept as JSON beside the instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.model.capacity import Claim
from orchestrator.model.errors import InvalidInputError


class Pin(NamedTuple):
    """One vCPU and the host CPU that it has for itself."""

    vcpu: int
    host_cpu: int


class Cell(NamedTuple):
    """One guest NUMA cell: memory of one host node, near these vCPUs; a cell for memory alone has none."""

    node: int
    memory_mib: int
    vcpus: tuple[int, ...]


class PlacedGpu(NamedTuple):
    """One GPU as the assignment names it."""

    id: str
    address: str
    vendor: str
    device: str
    node: int
    serial: str


@dataclass(frozen=True)
class Placement:
    """One place for one instance.

    Args:
        host_generation: of the host when it was found; another one means that it must be found again.
        pins: by vCPU; with two threads per core, vCPUs 2k and 2k + 1 sit on siblings.
        emulator: host CPUs for QEMU's own threads.
        cells: by node; vCPUs are numbered through them.
        devices: by address.
        held_cpus: every thread of its cores, those without a vCPU too: no other tenant may have them.
    """

    host: str
    host_generation: int
    page_size_kib: int
    threads_per_core: int
    pins: tuple[Pin, ...]
    emulator: tuple[int, ...]
    cells: tuple[Cell, ...]
    devices: tuple[PlacedGpu, ...]
    held_cpus: tuple[int, ...]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The units that it takes of its host, one claim row each, in a fixed order."""
        return (
            *(("cpu", str(cpu)) for cpu in self.held_cpus),
            *(("gpu", gpu.id) for gpu in self.devices),
        )

    @property
    def pages(self) -> dict[int, int]:
        """Pages that it takes, by node."""
        return {cell.node: cell.memory_mib * 1024 // self.page_size_kib for cell in self.cells}

    def assignment_parts(self) -> dict[str, Any]:
        """Return `cpus`, `memory` and `devices` as an instance of the assignment has them."""
        return {
            "cpus": {
                "pins": [pin._asdict() for pin in self.pins],
                "emulator": list(self.emulator),
                "threads_per_core": self.threads_per_core,
            },
            "memory": {
                "page_size_kib": self.page_size_kib,
                "cells": [{**cell._asdict(), "vcpus": list(cell.vcpus)} for cell in self.cells],
            },
            "devices": [gpu._asdict() for gpu in self.devices],
        }

    def as_dict(self) -> dict[str, Any]:
        """Return its JSON form; `Placement.from_dict` reads it back."""
        parts = self.assignment_parts()
        return {
            "host": self.host,
            "host_generation": self.host_generation,
            **parts["cpus"],
            **parts["memory"],
            "devices": parts["devices"],
            "held_cpus": list(self.held_cpus),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Placement:
        """Read what `as_dict` wrote.

        Raises:
            InvalidInputError: `placement.malformed`: something misses or has another type.
        """
        try:
            return cls(
                host=_text(kept["host"]),
                host_generation=_number(kept["host_generation"]),
                page_size_kib=_number(kept["page_size_kib"]),
                threads_per_core=_number(kept["threads_per_core"]),
                pins=tuple(Pin(_number(pin["vcpu"]), _number(pin["host_cpu"])) for pin in kept["pins"]),
                emulator=_numbers(kept["emulator"]),
                cells=tuple(
                    Cell(_number(cell["node"]), _number(cell["memory_mib"]), _numbers(cell["vcpus"]))
                    for cell in kept["cells"]
                ),
                devices=tuple(_gpu(gpu) for gpu in kept["devices"]),
                held_cpus=_numbers(kept["held_cpus"]),
            )
        except (KeyError, TypeError) as exc:
            why = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise InvalidInputError(
                "placement.malformed",
                f"this is no placement: {why}",
                hint="it was written by another version; place the instance again",
            ) from exc


def _gpu(kept: Mapping[str, Any]) -> PlacedGpu:
    return PlacedGpu(
        id=_text(kept["id"]),
        address=_text(kept["address"]),
        vendor=_text(kept["vendor"]),
        device=_text(kept["device"]),
        node=_number(kept["node"]),
        serial=_text(kept["serial"]),
    )


def _numbers(kept: Any) -> tuple[int, ...]:
    return tuple(_number(each) for each in kept)


def _number(kept: Any) -> int:
    # Python takes true for 1; JSON does not.
    if not isinstance(kept, int) or isinstance(kept, bool):
        raise TypeError(f"{type(kept).__name__} instead of a whole number")
    return kept


def _text(kept: Any) -> str:
    if not isinstance(kept, str):
        raise TypeError(f"{type(kept).__name__} instead of a text")
    return kept
