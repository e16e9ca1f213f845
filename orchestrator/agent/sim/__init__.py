"""A simulated host: the same ports as the real drivers, with latencies and faults that a test sets.

`SimWorld` is the host itself and outlives agents; `sim_host(world)` makes the drivers over it. A thousand
fit in one process. `tests/contract` holds it to the same promises as the real drivers.
"""

from orchestrator.agent.sim.drivers import SimKeys, sim_host
from orchestrator.agent.sim.world import SimWorld, everyday_world

__all__ = ["SimKeys", "SimWorld", "everyday_world", "sim_host"]
