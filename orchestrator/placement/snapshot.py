"""The fleet at one moment, as a value: placing one more gives a new fleet and costs one host, not all.

Holds what is free on each host in the order that decides (by name, then id). Decides nothing. The scheduler
makes one of the database's rows; `scheduling` changes it as it places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from orchestrator.model.capacity import Demand, HostCapacity
from orchestrator.model.errors import ConflictError, InvalidInputError, NotFoundError
from orchestrator.model.placement import Placement
from orchestrator.model.states import GpuState
from orchestrator.placement.free import Free, free_of

#: Hosts of one block: a change copies one block and the list of blocks, about 64 references for 1,000 hosts.
_BLOCK = 32


class Fleet:
    """All hosts, in order; never changes."""

    __slots__ = ("_blocks", "_positions")

    def __init__(self, blocks: tuple[tuple[Free, ...], ...], positions: Mapping[str, int]) -> None:
        self._blocks = blocks
        self._positions = positions

    @classmethod
    def of(cls, hosts: Iterable[HostCapacity]) -> Fleet:
        """Make a fleet; the order of `hosts` does not matter.

        Raises:
            InvalidInputError: `host.named_twice`.
        """
        ordered = sorted(hosts, key=lambda host: (host.name, host.id))
        positions = {host.id: at for at, host in enumerate(ordered)}
        if len(positions) != len(ordered):
            twice = next(host.id for at, host in enumerate(ordered) if positions[host.id] != at)
            raise InvalidInputError("host.named_twice", f"{twice} stands in the fleet twice")
        frees = [free_of(host) for host in ordered]
        blocks = tuple(tuple(frees[at : at + _BLOCK]) for at in range(0, len(frees), _BLOCK))
        return cls(blocks, positions)

    def __len__(self) -> int:
        return len(self._positions)

    def free(self, position: int) -> Free:
        """Return what is free on the host at this position."""
        return self._blocks[position // _BLOCK][position % _BLOCK]

    def frees(self, start: int = 0) -> Iterator[Free]:
        """Go through the hosts in order, from a position on."""
        block, inside = divmod(start, _BLOCK)
        return chain.from_iterable(
            islice(frees, inside if at == 0 else 0, None) for at, frees in enumerate(self._blocks[block:])
        )

    def position(self, host: str) -> int | None:
        """Find a host by id; None when it is not in the fleet."""
        return self._positions.get(host)

    def host(self, host: str) -> HostCapacity:
        """Return a host by id.

        Raises:
            NotFoundError: `host.unknown`.
        """
        return self.free(self._known(host)).host

    def with_host(self, host: HostCapacity) -> Fleet:
        """Return the fleet with a new look at one of its hosts; its name must be the same.

        Raises:
            NotFoundError: `host.unknown`.
            ConflictError: `host.renamed`: its place in the order would be another.
        """
        position = self._known(host.id)
        if self.free(position).host.name != host.name:
            raise ConflictError("host.renamed", f"{host.id} is named {host.name} now; make a new fleet")
        at, inside = divmod(position, _BLOCK)
        block = self._blocks[at]
        changed = (*block[:inside], free_of(host), *block[inside + 1 :])
        return Fleet((*self._blocks[:at], changed, *self._blocks[at + 1 :]), self._positions)

    def with_placed(self, placement: Placement, demand: Demand) -> Fleet:
        """Return the fleet after this placement was committed: claims held, generation raised by one.

        Nothing is judged here: `validate.violations` says whether the host can hold it.

        Raises:
            NotFoundError: `host.unknown`.
            ConflictError: `placement.stale`: it was made for another generation of the host.
        """
        host = self.host(placement.host)
        if host.generation != placement.host_generation:
            raise ConflictError(
                "placement.stale",
                f"{host.id} is at generation {host.generation}; the placement is for "
                f"{placement.host_generation}",
                hint="find a place again",
            )
        held, gpus = set(placement.held_cpus), {gpu.id for gpu in placement.devices}
        owners = {core.threads[0]: demand.tenant for core in host.cores if not held.isdisjoint(core.threads)}
        pages = placement.pages
        return self.with_host(
            dataclasses.replace(
                host,
                generation=host.generation + 1,
                taken=host.taken.union(placement.claims),
                core_tenants={**host.core_tenants, **owners},
                pages=tuple(
                    dataclasses.replace(page, used=page.used + pages[page.node])
                    if page.page_size_kib == placement.page_size_kib and page.node in pages
                    else page
                    for page in host.pages
                ),
                gpus=tuple(
                    dataclasses.replace(gpu, state=GpuState.CLAIMED) if gpu.id in gpus else gpu
                    for gpu in host.gpus
                ),
                used_disk_gib=host.used_disk_gib + demand.disk_gib,
            )
        )

    def _known(self, host: str) -> int:
        position = self._positions.get(host)
        if position is None:
            raise NotFoundError("host.unknown", f"the fleet has no host {host}")
        return position
