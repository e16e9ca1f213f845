"""Volumes, images and seeds: files that hold tenants' data, and who may write what into them."""

from orchestrator.agent.volumes.images import ImageCache
from orchestrator.agent.volumes.seeds import IsoSeeds
from orchestrator.agent.volumes.volumes import LuksVolumes

__all__ = ["ImageCache", "IsoSeeds", "LuksVolumes"]
