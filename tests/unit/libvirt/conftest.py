"""libvirt's own test driver, in this process: real definitions, states and events, no QEMU.

Each test has a host of its own, with one domain `test`, which runs and carries no mark of ours. What the
driver cannot do (secrets, a guest that does not obey) is put around it by `Around`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import pytest

from orchestrator.agent.libvirt import LibvirtHypervisor
from orchestrator.agent.libvirt.connection import Connection
from orchestrator.agent.libvirt.features import HostFeatures

T = TypeVar("T")

#: With a file of its own each connection has a host of its own, which goes with it.
HOST = """
<node>
  <domain type='test'>
    <name>test</name>
    <memory>65536</memory>
    <vcpu>1</vcpu>
    <os><type arch='x86_64'>hvm</type></os>
  </domain>
</node>
"""


def refusal(code: int, words: str = "no") -> libvirt.libvirtError:
    """One of libvirt's errors, as its bindings raise them."""
    made = libvirt.libvirtError(words)
    made.err = (code, libvirt.VIR_FROM_QEMU, words, libvirt.VIR_ERR_ERROR, "", "", "", -1, -1)
    return made


class Around:
    """An object of libvirt's with some of its methods replaced; each gets the object and the arguments.

    Domains that it hands out are wrapped in the same way, by `domain`.
    """

    def __init__(self, inner: Any, methods: dict[str, Callable[..., Any]], domain: dict[str, Any]) -> None:
        self._inner, self._methods, self._domain = inner, methods, domain

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in self._methods:
            return lambda *arguments: self._methods[name](self._inner, *arguments)
        if name in ("lookupByName", "defineXMLFlags"):
            return lambda *arguments: Around(found(*arguments), self._domain, {})
        return found


class AroundConnection(Connection):
    """A real connection to the test driver that can be told to misbehave."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._around: Around | None = None
        self.methods: dict[str, Callable[..., Any]] = {}
        self.domain: dict[str, Callable[..., Any]] = {}

    def call(self, work: Callable[[Any], T]) -> T:
        def around(connection: Any) -> T:
            if self._around is None or self._around._inner is not connection:
                self._around = Around(connection, self.methods, self.domain)
            return work(self._around)

        return super().call(around)

    def plain(self) -> Any:
        return super().call(lambda connection: connection)


class Machine:
    """A hypervisor over the test driver, and libvirt's own view of it for asking and for meddling."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        (tmp / "host.xml").write_text(HOST)
        self.connection = AroundConnection(f"test://{tmp}/host.xml")
        self.libvirt = self.connection.plain()
        self.hypervisor = self.fresh()

    def fresh(self) -> LibvirtHypervisor:
        """As after a restart of the agent: nothing is remembered."""
        return LibvirtHypervisor(
            self.connection, features=HostFeatures(), pid_dir=self.tmp / "pid", log_dir=self.tmp / "log"
        )

    def domain(self, name: str = "vm_a") -> Any:
        return self.libvirt.lookupByName(name)

    def names(self) -> set[str]:
        return {domain.name() for domain in self.libvirt.listAllDomains(0)}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "pid").mkdir()
    (tmp_path / "log").mkdir()
    made = Machine(tmp_path)
    yield made
    made.connection.close()
