"""What a host is made of, on one screen: its CPUs, memory and GPUs counted instead of listed one by one.

Decides only what people see of one host; JSON and YAML stay the API's object. `nouns.host` calls it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.cli import doctor
from orchestrator.model.cpus import format_cpu_list
from orchestrator.model.gpus import looks_like_gpu

#: Strays, and reasons why something is left alone, that are told one by one.
_SHOWN = 3
_MIB_KIB, _GIB_KIB = 1024, 1024 * 1024


def summary(host: Mapping[str, Any]) -> dict[str, Any]:
    """Return a host of the API with its strays and facts in a few lines. Cost: linear in the facts."""
    hidden = ("strays", "facts", "stale", "doctor")
    found = {name: value for name, value in host.items() if name not in hidden}
    found["doctor"] = doctor.line(host.get("doctor"))
    found["strays"] = _strays(host.get("strays") or [])
    found["stale"] = _stale(host.get("stale") or [])
    facts = host.get("facts")
    if facts is None:
        return found
    return found | _cpus(facts) | _nodes(facts) | _gpus(facts) | {"firmware": _pairs(facts.get("firmware"))}


def _strays(strays: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{each['kind']} {each['id']}" for each in strays[:_SHOWN]]
    more = len(strays) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _stale(stale: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{each['instance_id']} up to generation {each['generation']}" for each in stale[:_SHOWN]]
    more = len(stale) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _cpus(facts: Mapping[str, Any]) -> dict[str, str]:
    cpus = facts.get("cpus") or []
    # The lowest of its threads names a core: core numbers begin anew on each socket.
    cores = {min(each["siblings"], default=each["cpu"]) for each in cpus}
    told = f"{len({each['socket'] for each in cpus})} sockets, {len(cores)} cores, {len(cpus)} threads"
    return {"cpus": told, "host_cpus": format_cpu_list(facts.get("host_cpus") or [])}


def _nodes(facts: Mapping[str, Any]) -> dict[str, str]:
    threads = defaultdict(list)
    for each in facts.get("cpus") or []:
        threads[each["node"]].append(each["cpu"])
    found = {}
    for node in facts.get("nodes") or []:
        pages = [
            f"{total} x {_page(int(size))}"
            for size, total in sorted((node.get("hugepages") or {}).items(), key=lambda each: int(each[0]))
            if total
        ]
        found[f"node {node['node']}"] = (
            f"CPUs {format_cpu_list(threads[node['node']]) or 'none'}; memory {node['memory_mib']} MiB; "
            f"hugepages {', '.join(pages) or 'none'}"
        )
    return found


def _page(size_kib: int) -> str:
    for unit, name in ((_GIB_KIB, "GiB"), (_MIB_KIB, "MiB")):
        if size_kib % unit == 0:
            return f"{size_kib // unit} {name}"
    return f"{size_kib} KiB"


def _gpus(facts: Mapping[str, Any]) -> dict[str, str]:
    functions, ignored = facts.get("functions") or [], facts.get("ignored") or {}
    pool = [
        each for each in functions if looks_like_gpu(each["class_code"]) and each["address"] not in ignored
    ]
    models = defaultdict(list)
    for each in pool:
        models[f"{each['vendor']}:{each['device']}"].append(each["node"])
    told = [f"{len(nodes)} x {model} ({_by_node(nodes)})" for model, nodes in sorted(models.items())]
    left = [f"{address}: {why}" for address, why in sorted(ignored.items())[:_SHOWN]]
    if len(ignored) > _SHOWN:
        left.append(f"and {len(ignored) - _SHOWN} more")
    return {
        "gpus": ", ".join(told),
        "not handed out": "; ".join(left),
        "pci_functions": str(len(functions) + len(facts.get("bridges") or [])),
    }


def _by_node(nodes: Iterable[int]) -> str:
    counts = sorted(Counter(nodes).items())
    return ", ".join(f"{count} on {'no node' if node < 0 else f'node {node}'}" for node, count in counts)


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted((values or {}).items()))
