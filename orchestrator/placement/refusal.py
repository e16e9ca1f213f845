"""Why an instance has no place: which resource is short, on how many hosts, and how near the nearest came.

Only words and sums; who is refused is `first_fit`'s to say. The sentence is what a tenant reads on a pending
instance, so it names counts and no host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.model.errors import CapacityError

#: Every reason, the most telling first: what no wait cures, then what others must give back, then hosts.
CODES = (
    "isolation.unsupported",
    "gpu.model",
    "gpu.short",
    "cpu.short",
    "memory.short",
    "disk.short",
    "host.cordoned",
    "host.pinned",
)
#: A reason about a host tells nothing about what is short.
_ABOUT_HOSTS = ("host.cordoned", "host.pinned")
_NO_HOST = "host.none"
_NOUNS = {
    "gpu.short": "GPUs are",
    "cpu.short": "CPUs are",
    "memory.short": "memory is",
    "disk.short": "disk is",
}


@dataclass(frozen=True, slots=True)
class Miss:
    """One reason on one host.

    Args:
        need: how much it takes, in `unit`.
        have: how much this host could give.
        unit: what is counted, in words.
    """

    code: str
    need: int
    have: int
    unit: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """One reason over all hosts.

    Args:
        hosts: how many hosts have it.
        have: the nearest miss: the most that one of them could give.
    """

    code: str
    hosts: int
    need: int
    have: int
    unit: str


@dataclass(frozen=True)
class Refusal:
    """No host can run it now.

    Args:
        hosts: how many hosts were looked at.
        shortages: in the order of `CODES`; a host that is short of two things counts in both.
    """

    hosts: int
    shortages: tuple[Shortage, ...]

    @property
    def code(self) -> str:
        """The reason that most hosts have; one about resources goes before one about hosts."""
        if not self.shortages:
            return _NO_HOST
        return min(
            self.shortages,
            key=lambda each: (each.code in _ABOUT_HOSTS, -each.hosts, CODES.index(each.code)),
        ).code

    @property
    def sentence(self) -> str:
        """Name what is short."""
        if not self.shortages:
            return "no host has room: there is no host yet"
        return "no host has room: " + "; ".join(_words(each, self.hosts) for each in self.shortages)

    def as_dict(self) -> dict[str, object]:
        """Return its JSON form: an error's, with the counts."""
        return {
            **self.as_error().as_dict(),
            "hosts": self.hosts,
            "shortages": [dataclasses.asdict(each) for each in self.shortages],
        }

    def as_error(self) -> CapacityError:
        """Say it as the error that a request with `on_no_capacity=fail` ends in."""
        hint = "wait until others give back what they hold, or ask for another instance type"
        return CapacityError(self.code, self.sentence, hint=hint)


def sum_up(hosts: int, misses: Iterable[Miss], *, elsewhere: int = 0) -> Refusal:
    """Count reasons over hosts. The order of `misses` does not matter.

    Args:
        hosts: how many hosts were looked at.
        misses: each host's reasons, no code twice for one host.
        elsewhere: hosts that cannot have it whatever they have free, since its volumes live on another.
    """
    found: dict[str, Shortage] = {}
    for miss in misses:
        had = found.get(miss.code)
        if had is None:
            found[miss.code] = Shortage(miss.code, 1, miss.need, miss.have, miss.unit)
            continue
        have, unit = max((had.have, had.unit), (miss.have, miss.unit))
        found[miss.code] = Shortage(miss.code, had.hosts + 1, miss.need, have, unit)
    if elsewhere:
        found["host.pinned"] = Shortage("host.pinned", elsewhere, 1, 0, "host")
    return Refusal(hosts, tuple(found[code] for code in CODES if code in found))


def _words(short: Shortage, hosts: int) -> str:
    one = short.hosts == 1
    where = f"{short.hosts} of {hosts} host{'s' if hosts != 1 else ''}"
    if short.code == "isolation.unsupported":
        return f"isolation class {short.unit} can be placed on no host"
    if short.code == "host.cordoned":
        return f"{where} {'takes' if one else 'take'} no new instances"
    if short.code == "host.pinned":
        return f"{where} cannot have it, since its volumes live elsewhere"
    if short.code == "gpu.model":
        return (
            f"{where} {'has' if one else 'have'} at most {short.have} of the {short.need} {short.unit} needed"
        )
    noun = _NOUNS[short.code]
    return f"{noun} short on {where} ({short.need} {short.unit} needed, at most {short.have} free on one)"
