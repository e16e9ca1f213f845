"""Builders of the domain definition, one file per group of elements.

Pure functions from `LaunchSpec` and `HostFeatures` to lxml elements; the same input gives the same bytes.
Nothing here talks to libvirt. `domain.build` joins them.
"""
