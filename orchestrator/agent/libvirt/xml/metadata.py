"""Our mark on a domain: whose it is, what it was defined from; so nothing has to be remembered elsewhere.

Written by `domain`, read back by `readback`. A domain without it is not ours and is never touched.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.model.launch import LaunchSpec

#: Names the format of the mark; not an address that is ever fetched.
NAMESPACE = "https://bulkhead.dev/xmlns/instance/1"
TAG = f"{{{NAMESPACE}}}instance"


def mark(spec: LaunchSpec) -> etree._Element:
    """Everything of `ObservedDomain` that the rest of the definition does not say."""
    made = etree.Element("metadata")
    ours = etree.SubElement(made, TAG, nsmap={"bulkhead": NAMESPACE})
    instance = spec.instance
    for name, value in (
        ("id", instance.id),
        ("deployment", spec.deployment),
        ("tenant", instance.tenant),
        ("generation", str(instance.generation)),
        ("digest", spec.digest()),
        ("uid", str(spec.uid)),
    ):
        ours.set(name, value)
    return made
