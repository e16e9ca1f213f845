"""What hosts say about themselves, as it stands on the wire: facts, reports and errors, all of them bounded.

Turns `HostFacts` and `HostReport` into JSON and back. Going out, what is too long is cut: a report must never
be stuck on a long line. Coming in, what is too long is refused: nobody honest sends it. Control characters
become question marks, since what a host says is shown to people. `protocol` calls it; pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from orchestrator.model.assignment import MAX_NODE, Address, PciId
from orchestrator.model.cpus import MAX_CPU
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.gpus import DEFAULT_MODELS, MAX_MODELS
from orchestrator.model.host import Cache, HostCpu, HostFacts, Hugepages, NumaNode, PciFunction
from orchestrator.model.ids import DeploymentId, HostId
from orchestrator.model.observed import ResetEvidence
from orchestrator.model.report import (
    AbsentReport,
    DeviceReport,
    HostReport,
    InstanceReport,
    Phase,
    StepRecord,
    Stray,
)

#: Characters of a sentence or of what a check read; longer ones are cut by the agent.
MAX_TEXT = 4096
MAX_INSTANCES = 4096
#: Removal orders, and strays.
MAX_THINGS = 65536
MAX_VERDICTS = 4096
#: The last steps of an application; they are for people.
MAX_STEPS = 4096
MAX_CPUS = 8192
MAX_FUNCTIONS = 8192
#: Four for each CPU, should it share none.
MAX_CACHES = 4 * MAX_CPUS
#: Problems of one refused assignment that are told one by one (`parsing.MAX_SHOWN`).
MAX_PROBLEMS = 100
_CUT = "..."


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_printable)]
Short = Annotated[str, StringConstraints(max_length=128), AfterValidator(_printable)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.]{0,127}$")]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Cpu = Annotated[int, Field(ge=0, le=MAX_CPU)]
Node = Annotated[int, Field(ge=0, le=MAX_NODE)]
#: -1 is what the kernel says where it does not know.
NodeOrNone = Annotated[int, Field(ge=-1, le=MAX_NODE)]
Pid = Annotated[int, Field(ge=1, lt=2**31)]
Uid = Annotated[int, Field(ge=0, lt=2**32)]


class Message(BaseModel):
    """What all messages share: frozen, strict, closed; an error never shows what was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ErrorBody(Message):
    """`BulkheadError.as_dict()`."""

    code: Code
    message: Text
    retryable: bool = False
    field: Text | None = None
    hint: Text | None = None
    problem_count: Number | None = None
    problems: tuple[ErrorBody, ...] | None = Field(default=None, max_length=MAX_PROBLEMS)

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if any(each.problems is not None for each in self.problems or ()):
            raise ValueError("a problem has no problems of its own")
        return self

    def value(self) -> dict[str, Any]:
        """Return the JSON form that it was read from."""
        return self.model_dump(mode="json", exclude_none=True)


class _Cpu(Message):
    cpu: Cpu
    socket: Annotated[int, Field(ge=-1, lt=2**31)]
    core: Annotated[int, Field(ge=-1, lt=2**31)]
    node: NodeOrNone
    siblings: frozenset[Cpu] = Field(max_length=64)

    def value(self) -> HostCpu:
        return HostCpu(self.cpu, self.socket, self.core, self.node, self.siblings)


class _Pages(Message):
    total: Number
    free: Number


class _NumaNode(Message):
    node: Node
    cpus: frozenset[Cpu] = Field(max_length=MAX_CPUS)
    memory_mib: Number
    hugepages: dict[Annotated[int, Field(ge=1, le=1 << 30)], _Pages] = Field(max_length=8)
    distances: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = Field(default=(), max_length=MAX_NODE + 1)

    def value(self) -> NumaNode:
        pages = {size: Hugepages(each.total, each.free) for size, each in self.hugepages.items()}
        return NumaNode(self.node, self.cpus, self.memory_mib, pages, self.distances)


class _Cache(Message):
    level: Annotated[int, Field(ge=0, le=16)]
    kind: Short
    size_kib: Number
    cpus: frozenset[Cpu] = Field(max_length=MAX_CPUS)

    def value(self) -> Cache:
        return Cache(self.level, self.kind, self.size_kib, self.cpus)


class _Function(Message):
    address: Address
    vendor: PciId
    device: PciId
    class_code: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{6}$")]
    node: NodeOrNone
    driver: Short | None
    group: Annotated[int, Field(ge=0, lt=2**31)] | None
    reset_methods: tuple[Short, ...] = Field(max_length=16)
    bars: dict[Annotated[int, Field(ge=0, le=63)], Number] = Field(max_length=64)
    physical_function: Address | None
    virtual_functions: Annotated[int, Field(ge=0, le=65536)]
    serial: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$", max_length=64)]
    # From here on, what the first agents did not say.
    parent: Address | None = None
    root_complex: Short = ""
    acs: tuple[Short, ...] | None = Field(default=None, max_length=16)
    virtual_functions_max: Annotated[int, Field(ge=0, le=65536)] = 0
    subsystem: Short = ""
    revision: Short = ""
    boot_display: bool = False

    def value(self) -> PciFunction:
        return PciFunction(**{name: getattr(self, name) for name in type(self).model_fields})


class FactsBody(Message):
    """`HostFacts`."""

    cpus: tuple[_Cpu, ...] = Field(max_length=MAX_CPUS)
    nodes: tuple[_NumaNode, ...] = Field(max_length=MAX_NODE + 1)
    functions: tuple[_Function, ...] = Field(max_length=MAX_FUNCTIONS)
    host_cpus: frozenset[Cpu] = Field(max_length=MAX_CPUS)
    boot_id: Short
    caches: tuple[_Cache, ...] = Field(default=(), max_length=MAX_CACHES)
    firmware: dict[Short, Short] = Field(default_factory=dict, max_length=32)
    gpu_models: tuple[Short, ...] = Field(default=DEFAULT_MODELS, max_length=MAX_MODELS)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        # Two of the same would let the controller count one thing twice.
        _once("CPU", (each.cpu for each in self.cpus))
        _once("node", (each.node for each in self.nodes))
        _once("function", (each.address for each in self.functions))
        return self

    def value(self) -> HostFacts:
        """Return the facts."""
        return HostFacts(
            cpus=tuple(each.value() for each in self.cpus),
            nodes=tuple(each.value() for each in self.nodes),
            functions=tuple(each.value() for each in self.functions),
            host_cpus=self.host_cpus,
            boot_id=self.boot_id,
            caches=tuple(each.value() for each in self.caches),
            firmware=dict(self.firmware),
            gpu_models=self.gpu_models,
        )


class _Verdict(Message):
    id: Short
    subject: Text
    status: Status
    expected: Text
    read: Text

    def value(self) -> Verdict:
        return Verdict(self.id, self.subject, self.status, self.expected, self.read)


class _Reset(Message):
    address: Address
    method: Short
    duration_s: Seconds
    responds: bool
    evidence_class: Short

    def value(self) -> ResetEvidence:
        return ResetEvidence(self.address, self.method, self.duration_s, self.responds, self.evidence_class)


class _Instance(Message):
    instance: Short
    tenant: Short
    name: Short
    generation: Number
    phase: Phase
    error: ErrorBody | None
    pid: Pid | None
    uid: Uid | None
    verdicts: tuple[_Verdict, ...] = Field(max_length=MAX_VERDICTS)
    resets: tuple[_Reset, ...] = Field(max_length=64)
    guest_socket: Text | None
    held_generation: Number | None = None

    def value(self) -> InstanceReport:
        return InstanceReport(
            instance=self.instance,
            tenant=self.tenant,
            name=self.name,
            generation=self.generation,
            phase=self.phase,
            error=None if self.error is None else self.error.value(),
            pid=self.pid,
            uid=self.uid,
            verdicts=tuple(each.value() for each in self.verdicts),
            resets=tuple(each.value() for each in self.resets),
            guest_socket=self.guest_socket,
            held_generation=self.held_generation,
        )


class _Device(Message):
    address: Address
    state: Short
    tenancy: Number
    instance: Short | None
    evidence_class: Short
    method: Short

    def value(self) -> DeviceReport:
        return DeviceReport(
            self.address, self.state, self.tenancy, self.instance, self.evidence_class, self.method
        )


class _Absent(Message):
    kind: Short
    id: Short
    phase: Phase
    error: ErrorBody | None
    held_generation: Number | None = None

    def value(self) -> AbsentReport:
        error = None if self.error is None else self.error.value()
        return AbsentReport(self.kind, self.id, self.phase, error, self.held_generation)


class _Stray(Message):
    kind: Short
    id: Text
    sightings: Number


class _Step(Message):
    subject: Text
    step: Short
    duration_s: Seconds


class ReportBody(Message):
    """`HostReport.as_dict()`."""

    deployment: DeploymentId
    host: HostId
    epoch: Number
    revision: Number
    instances: tuple[_Instance, ...] = Field(max_length=MAX_INSTANCES)
    absent: tuple[_Absent, ...] = Field(max_length=MAX_THINGS)
    strays: tuple[_Stray, ...] = Field(max_length=MAX_THINGS)
    flows_digest: Short
    changed: bool
    verdicts: tuple[_Verdict, ...] = Field(max_length=MAX_VERDICTS)
    steps: tuple[_Step, ...] = Field(max_length=MAX_STEPS)
    duration_s: Seconds
    devices: tuple[_Device, ...] = Field(default=(), max_length=MAX_THINGS)
    #: For people; the value works it out itself.
    ok: bool

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _once("instance", (each.instance for each in self.instances))
        _once("device", (each.address for each in self.devices))
        return self

    def value(self) -> HostReport:
        """Return the report."""
        return HostReport(
            deployment=self.deployment,
            host=self.host,
            epoch=self.epoch,
            revision=self.revision,
            instances=tuple(each.value() for each in self.instances),
            absent=tuple(each.value() for each in self.absent),
            strays=tuple(Stray(each.kind, each.id, each.sightings) for each in self.strays),
            flows_digest=self.flows_digest,
            changed=self.changed,
            verdicts=tuple(each.value() for each in self.verdicts),
            steps=tuple(StepRecord(each.subject, each.step, each.duration_s) for each in self.steps),
            duration_s=self.duration_s,
            devices=tuple(each.value() for each in self.devices),
        )


def facts_document(facts: HostFacts) -> dict[str, Any]:
    """Write facts as JSON of a fixed order. Cost: linear in the host."""
    found: dict[str, Any] = _fitting(facts)
    return found


def report_document(report: HostReport) -> dict[str, Any]:
    """Write a report as JSON; the last steps of many, and the beginnings of long texts."""
    kept = dataclasses.replace(report, steps=report.steps[-MAX_STEPS:])
    found: dict[str, Any] = _fitting(kept.as_dict())
    return found


def error_document(error: Mapping[str, Any]) -> dict[str, Any]:
    """Write an error's JSON form."""
    found: dict[str, Any] = _fitting(dict(error))
    return found


def _fitting(value: Any) -> Any:
    """Make plain JSON of a tree of values: sets in order, texts cut and free of what is no character.

    What there is most of comes first: hosts of a simulated fleet write their facts all at once, on one loop.
    """
    kind = type(value)
    if value is None or kind in _AS_THEY_ARE:
        return value
    if isinstance(value, str):
        text = str(value)
        if text.isascii() and len(text) <= MAX_TEXT:
            return text
        if len(text) > MAX_TEXT:
            text = text[: MAX_TEXT - len(_CUT)] + _CUT
        return text.encode("utf-8", "replace").decode()
    if dataclasses.is_dataclass(kind):
        return {name: _fitting(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, Mapping):
        return {str(key): _fitting(each) for key, each in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_fitting(each) for each in value]
    return value


_AS_THEY_ARE = frozenset({int, float, bool})


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(kind))


def _once(what: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"a {what} stands there twice")
        seen.add(key)
