"""The promises that the simulated host keeps, kept by the real drivers: the same tests, in the lab host."""

from __future__ import annotations

import json
import shlex

import pytest

pytestmark = pytest.mark.lab


def test_real_drivers_keep_the_contract(lab_host):
    image = {"digest": lab_host.image.digest, "size_bytes": lab_host.image.size_bytes}
    done = lab_host.host.ssh(
        f"cd /opt/bulkhead/src && BULKHEAD_CONTRACT={shlex.quote(json.dumps(image))} "
        "/opt/bulkhead/venv/bin/python -m pytest -q -p no:cacheprovider --timeout 400 tests/contract",
        timeout_s=560,
        check=False,
    )

    assert done.rc == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
