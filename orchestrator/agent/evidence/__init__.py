"""The real `Inspector`: what the kernel says about running instances, read from /proc and /sys."""

from __future__ import annotations

from orchestrator.agent.evidence.inspector import KernelInspector

__all__ = ["KernelInspector"]
