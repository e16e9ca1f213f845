"""Data keys wrapped by tenants' keys, and where tenants' keys lie. The controller calls it, no agent does."""
