"""The real `Devices` driver: VFIO binding and reset of PCI functions through sysfs."""

from __future__ import annotations

from orchestrator.agent.devices.vfio import VfioDevices
from orchestrator.agent.devices.worker import ProcessWorker

__all__ = ["ProcessWorker", "VfioDevices"]
