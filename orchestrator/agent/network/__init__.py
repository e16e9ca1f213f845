"""Open vSwitch: the database's ports, the bridge's flows, and the `Switch` that joins them."""

from orchestrator.agent.network.switch import OvsSwitch

__all__ = ["OvsSwitch"]
