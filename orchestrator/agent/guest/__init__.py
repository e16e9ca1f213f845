"""The guest channel: how bytes from inside a tenant's machine are read."""

from orchestrator.agent.guest.channel import GuestChannel

__all__ = ["GuestChannel"]
