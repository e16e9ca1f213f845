"""Tests of the lab host's harness, without booting one."""
