"""The devices that Bulkhead took from the host, on the way from dirty to clean to exposed and back.

Order is everything: `exposed` is made durable before the VM starts, so that a crash finds the device in
need of cleaning, never free. Called by `instances` and `removal`; the hung-driver worker is in `devices`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from orchestrator.agent.effects import Effects
from orchestrator.agent.host import Host
from orchestrator.agent.journal import Journal, JournalState, PoolDevice
from orchestrator.isolation.devices import device_problems
from orchestrator.model.assignment import Device, Instance
from orchestrator.model.errors import DeviceError, NotFoundError
from orchestrator.model.observed import ObservedDevice, ResetEvidence
from orchestrator.model.report import DeviceReport


def with_device(state: JournalState, device: PoolDevice) -> JournalState:
    """Return the state with this device set."""
    return dataclasses.replace(state, pool={**state.pool, device.address: device})


def without_device(state: JournalState, address: str) -> JournalState:
    """Return the state without the device at this address."""
    return dataclasses.replace(state, pool={k: v for k, v in state.pool.items() if k != address})


def devices(state: JournalState) -> tuple[DeviceReport, ...]:
    """Return what is known of each device of the pool, by address."""
    return tuple(
        DeviceReport(each.address, each.state, each.tenancy, each.instance, each.evidence, each.method)
        for each in sorted(state.pool.values(), key=lambda each: each.address)
    )


class Pool:
    """Binds, cleans, exposes and gives back devices."""

    def __init__(self, host: Host, journal: Journal, effects: Effects, vfio_driver: str) -> None:
        self._host = host
        self._journal = journal
        self._effects = effects
        self._vfio_driver = vfio_driver

    def prepare(self, instance: Instance) -> None:
        """Take every device of a stopped instance into the pool, clean it and mark it exposed.

        Raises:
            DeviceError: a device is not what the assignment says, is not alone in its group, or does not
            obey.
        """
        wanted = frozenset(device.address for device in instance.devices)
        for device in instance.devices:
            self._take(instance, device, wanted)
        for device in instance.devices:
            if self._journal.state.pool[device.address].state == "exposed":
                # A start that was cut off may have shown it to the guest: that was a tenancy of its own.
                self._mark(instance.id, device.address, state="dirty", instance=instance.id)
            self._clean(instance.id, device.address)
        for device in instance.devices:
            self._mark(instance.id, device.address, state="exposed", instance=instance.id)

    def resets(self, instance_id: str) -> tuple[ResetEvidence, ...]:
        """Return what cleaned the devices that an instance holds, before they were exposed to it.

        Read from the journal, so that neither a failure after the reset nor an agent that starts anew takes
        it along. A device that was adopted has none: nobody remembers its reset.
        """
        return tuple(
            # Only a device that answered is marked as cleaned.
            ResetEvidence(each.address, each.method, each.reset_s, True, each.evidence)
            for each in sorted(self._journal.state.pool.values(), key=lambda each: each.address)
            if (each.instance, each.state) == (instance_id, "exposed") and each.method
        )

    def release(self, instance_id: str) -> None:
        """Clean every device that was exposed to an instance which no longer runs."""
        mine = [d for d in self._journal.state.pool.values() if d.instance == instance_id]
        for device in sorted(mine, key=lambda d: d.address):
            self._mark(instance_id, device.address, state="dirty", instance=instance_id)
            self._clean(instance_id, device.address)
            self._mark(instance_id, device.address, state="clean", instance=None)

    def adopt(self, instance_id: str, devices: Mapping[str, str]) -> None:
        """Remember devices that a running instance holds and the journal lost (address to id)."""
        for address, device_id in devices.items():
            if address not in self._journal.state.pool:
                # Which driver it came with is lost as well; on its way out the kernel picks one.
                lost = PoolDevice(device_id, address, None, "exposed", 1, instance_id)
                self._journal.update(lambda state, d=lost: with_device(state, d))  # type: ignore[misc]

    def give_back(self, device_id: str) -> bool:
        """Let a device leave the pool with the driver it came with. Tells whether there was one."""
        found = next((d for d in self._journal.state.pool.values() if d.id == device_id), None)
        if found is None:
            return False
        if found.instance is not None:
            raise DeviceError(
                "device.in_use",
                f"{found.address} is exposed to {found.instance}",
                hint=f"order {found.instance} absent first",
            )
        self._effects.do(
            device_id,
            "give_back_device",
            lambda: self._host.devices.give_back(found.address, found.original_driver),
        )
        self._journal.update(lambda state: without_device(state, found.address))
        return True

    def _take(self, instance: Instance, device: Device, wanted: frozenset[str]) -> None:
        observed = self._observe(device.address)
        known = self._journal.state.pool.get(device.address)
        if known is not None and known.instance not in (None, instance.id):
            raise DeviceError("device.in_use", f"{device.address} is exposed to {known.instance}")
        problems = device_problems(observed, device, wanted)
        if problems:
            raise problems[0]
        if known is None:
            original = observed.driver if observed.driver != self._vfio_driver else None
            known = PoolDevice(device.id, device.address, original, "dirty", 0)
        taken = dataclasses.replace(known, id=device.id)
        self._journal.update(lambda state: with_device(state, taken))
        if observed.driver != self._vfio_driver or observed.driver_override != self._vfio_driver:
            self._effects.do(
                instance.id,
                "bind_device",
                lambda: self._host.devices.bind(device.address, self._vfio_driver),
            )

    def _clean(self, subject: str, address: str) -> None:
        evidence = self._effects.do(subject, "reset_device", lambda: self._host.devices.reset(address))
        if not evidence.responds:
            raise DeviceError(
                "device.unresponsive",
                f"{address} does not answer after its reset ({evidence.method})",
                hint="quarantine it and power-cycle the host",
            )
        device = self._journal.state.pool[address]
        cleaned = dataclasses.replace(
            device, evidence=evidence.evidence_class, method=evidence.method, reset_s=evidence.duration_s
        )
        self._journal.update(lambda state: with_device(state, cleaned))

    def _mark(self, subject: str, address: str, *, state: str, instance: str | None) -> None:
        device = self._journal.state.pool[address]
        exposed_anew = state == "exposed" and device.state != "exposed"
        marked = dataclasses.replace(
            device,
            state=state,
            instance=instance,
            tenancy=device.tenancy + 1 if exposed_anew else device.tenancy,
            evidence="" if state == "dirty" else device.evidence,
            method="" if state == "dirty" else device.method,
            reset_s=0.0 if state == "dirty" else device.reset_s,
        )
        self._effects.do(
            subject, f"mark_{state}", lambda: self._journal.update(lambda whole: with_device(whole, marked))
        )

    def _observe(self, address: str) -> ObservedDevice:
        observed = self._host.devices.observe(address)
        if observed is None:
            raise NotFoundError("device.missing", f"there is no PCI function at {address}")
        return observed
