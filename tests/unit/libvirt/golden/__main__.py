"""Writes the golden files anew."""

from __future__ import annotations

from orchestrator.agent.libvirt.xml.domain import build
from tests.unit.libvirt.golden import HERE
from tests.unit.libvirt.specs import SPECS

for stale in HERE.glob("*.xml"):
    stale.unlink()
for name, (spec, features) in SPECS.items():
    (HERE / f"{name}.xml").write_text(build(spec, features))
    print(f"{name}.xml")
