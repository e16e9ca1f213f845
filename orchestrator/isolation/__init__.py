"""Pure: what must be true between tenants. Policy to flows, admission, verdicts."""
