"""libvirt: the domain definition in small builders, its lint, and the `Hypervisor` that joins them."""

from orchestrator.agent.libvirt.domains import LibvirtHypervisor

__all__ = ["LibvirtHypervisor"]
