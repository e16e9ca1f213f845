"""A controller on this machine, two tenants, and the lab host as its host: what the later lab tests share."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

from images.labhost import lab, showcase
from images.labhost.control import LabController, ensure
from images.labhost.prepared import prepare
from orchestrator.client import TenantClient
from orchestrator.controller.checks import violations
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.lab import kernel_view

ACME, GLOBEX = "acme", "globex"
SETTLE_S = 600.0


class Deployment:
    """The controller, its two tenants, and the lab host."""

    def __init__(self, lab_host: Any) -> None:
        leave(lab_host)
        self.lab = lab_host
        self.controller = LabController(lab.lab_folder() / "controller-of-tests")
        self.controller.remove()
        self.controller.start()
        prepare(self.controller, lab_host.host)
        self.clients = {name: self.controller.admin_of(name, showcase.LIMITS) for name in (ACME, GLOBEX)}
        self.operator = self.controller.operator()
        self.host = self.operator.hosts[f"lab{lab_host.host.number}"]
        showcase.catalog(self.controller, lab_host.session)
        for name in (ACME, GLOBEX):
            ensure(self.tenant(name).networks, showcase.NETWORK)

    def tenant(self, name: str) -> TenantClient:
        return self.clients[name].tenant(name)

    def instances(self) -> dict[str, dict[str, Any]]:
        """All of both tenants by name, as the operator sees them."""
        return {
            each["name"]: each for name in (ACME, GLOBEX) for each in self.operator.tenant(name).instances
        }

    def in_state(self, state: str) -> set[str]:
        return {name for name, each in self.instances().items() if each["state"] == state}

    def running(self) -> list[dict[str, Any]]:
        """Those that run; at least one does."""
        found = [each for each in self.instances().values() if each["state"] == "running"]
        assert found
        return found

    def pids(self) -> dict[str, int]:
        """Each running one's process on the lab host, by id."""
        return {each["id"]: kernel_view.qemu_pid(self.lab, each["id"]) for each in self.running()}

    def inside(self, identity: str, script: str) -> tuple[int, str]:
        """Run a script in a guest; return its exit status and output."""
        request = {"op": "run", "script": script, "timeout_s": 60}
        answer = self.lab.session.ask(identity, request)
        return answer["exit_code"], base64.b64decode(answer["output_b64"]).decode(errors="replace")

    def eventually(self, holds: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + SETTLE_S
        while not (found := holds()):
            if (death := self.lab.host.died_reason(quick=True)) is not None:
                raise lab.LabDiedError(death)
            assert time.monotonic() < end, (
                what,
                [(n, i["state"], i["error"]) for n, i in self.instances().items()],
            )
            time.sleep(1)
        return found

    def done(self, tenant: str, answer: Any) -> None:
        self.clients[tenant].wait(answer, self.tenant(tenant).operations, timeout_s=SETTLE_S)

    def delete(self, *things: tuple[str, str]) -> None:
        """Take away instances, each named by tenant and name, at once, and wait until they are gone."""
        asked = [(tenant, self.tenant(tenant).instances[name].delete()) for tenant, name in things]
        for tenant, answer in asked:
            self.done(tenant, answer)

    def checked(self) -> None:
        """No invariant is broken in the controller's database."""
        url = f"sqlite:///{self.controller.folder / 'state' / 'bulkhead.db'}"
        store = Store(Database(url))
        try:
            with store.reading() as tx:
                assert violations(tx) == ()
        finally:
            store.database.dispose()

    def end(self) -> None:
        """Let the lab host be nobody's again, and forget the controller."""
        self.lab.sh("systemctl stop bulkhead-agent || true")
        self.lab.sh("bulkhead agent leave || true")
        self.controller.remove()


def leave(lab_host: Any) -> None:
    """Let the lab host be nobody's, whoever it served until now."""
    lab_host.sh("systemctl stop bulkhead-agent 2>/dev/null || true")
    if lab_host.session.followed():
        lab_host.session.apply(lab_host.gone(lab_host.all))
    lab_host.sh("bulkhead agent leave")
    # From here on it is the controller that says what runs.
    lab_host.last = None
