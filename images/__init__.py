"""Recipes of the images Bulkhead is tested with and runs: the lab host, the probe guest, tenant images."""
