"""Schemathesis with many examples, new ones each time, of all that an operator or a tenant admin may ask.

A file of its own, which quick runs leave out (`tests/conftest.py`): its cases are made as it is collected.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from orchestrator.access.roles import OPERATOR, TENANT_ADMIN
from tests.api import fuzzing
from tests.api.fuzzing import World
from tests.api.test_schemathesis import FIXTURE, as_admin, as_operator, part_of, restored, world

__all__ = ["as_admin", "as_operator", "restored", "world"]

MANY = 300
LONG = fuzzing.schema(MANY)
_LONG = settings(max_examples=MANY, suppress_health_check=FIXTURE)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@part_of(LONG, OPERATOR).parametrize()
@_LONG
def test_many_answers_to_an_operator_are_as_documented(case, as_operator: World):
    as_operator.send(case)


@part_of(LONG, TENANT_ADMIN).parametrize()
@_LONG
def test_many_answers_to_a_tenant_admin_are_as_documented(case, as_admin: World):
    as_admin.send(case)
