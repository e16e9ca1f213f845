"""The bench measures on the lab host that the lab tests use, and the controller in processes of its own."""

from __future__ import annotations

import pytest

from tests.bench.controller.measuring import FOUND, table
from tests.databases import database_url, postgres, sqlite_template
from tests.lab.conftest import lab_host, pytest_runtest_protocol, pytest_sessionfinish

__all__ = [
    "database_url",
    "lab_host",
    "postgres",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "sqlite_template",
]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was found."""
    if FOUND:
        terminalreporter.section("the controller, measured")
        for line in table():
            terminalreporter.line(line)
