"""Bulkhead: isolated GPU virtual machines for many tenants, with evidence."""

__version__ = "0.1.0"
