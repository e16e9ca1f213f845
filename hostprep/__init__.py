"""Before and while a host takes tenants: what it is made of (`probe`), what it lacks (`doctor`)."""
