"""How often properties are tried; a slow machine is no failure, so nothing here watches the clock."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "bulkhead", max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bulkhead")
