"""Which PCI functions of a host are GPUs to hand out, and why another one is not.

A host's rule is a list of models: `data-centre` (the table below), `display` (any display controller that is
not a server's own), or `vendor:device`, where `*` stands for every device. One that no entry allows is never
touched. The probe reports the rule, the controller's inventory, the doctor and the commands ask here; pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.model.errors import InvalidInputError

if TYPE_CHECKING:
    from orchestrator.model.host import HostFacts, PciFunction

DATA_CENTRE, DISPLAY = "data-centre", "display"
#: Today's display controllers stay in; AMD's accelerators, which are no display controllers, come in.
DEFAULT_MODELS = (DATA_CENTRE, DISPLAY)
MAX_MODELS = 256

_MODEL = re.compile(r"^[0-9a-f]{4}:([0-9a-f]{4}|\*)$")
#: PCI Code and ID Assignment: VGA, 3D and other display controllers; processing accelerators.
_DISPLAY_CLASSES = ("0300", "0302", "0380")
_CLASSES = (*_DISPLAY_CLASSES, "1200")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: By the names that the public PCI id database gives them.
_DATA_CENTRE = {
    # V100, T4, A100, A800, A30, A40, A10, A16, H100, H800, H200, H20, L4, L40, L40S, B200, RTX PRO 6000.
    "10de": _words("""
    1db1 1db4 1db5 1db6 1db8 1df6 1eb8 20b0 20b1 20b2 20b5 20b7 20bd 20f1 20f3 20f5 2235 2236 2237 25b6
    2321 2322 2324 2329 2330 2331 2335 2336 2337 2338 2339 233a 233b 26b5 26b9 27b8 2901 2bb5
    """),
    # Instinct: MI100, MI210, MI250, MI250X, MI300A, MI300X, MI308X, MI325X, MI350X, MI355X.
    "1002": _words("""
    738c 7408 740c 740f 74a0 74a1 74a2 74a5 75a0 75a3
    """),
}
#: Makers of what a server's management processor or an emulator shows its console on: ASPEED, Matrox, XGI,
#: Hisilicon's iBMC, Cirrus.
_MANAGEMENT_VENDORS = frozenset({"1a03", "102b", "18ca", "19e5", "1013"})


def check_models(models: tuple[str, ...]) -> tuple[str, ...]:
    """Return a host's rule as it is, or refuse it.

    Raises:
        InvalidInputError: `gpu_models.invalid`.
    """
    if len(models) > MAX_MODELS:
        raise InvalidInputError(
            "gpu_models.invalid", f"{len(models)} models; {MAX_MODELS} are allowed", field="gpu_models"
        )
    for each in models:
        if each not in DEFAULT_MODELS and not _MODEL.match(each):
            raise InvalidInputError(
                "gpu_models.invalid",
                f"{each[:32]!r} is no model",
                field="gpu_models",
                hint=f"say {DATA_CENTRE}, {DISPLAY}, or ids such as 10de:2330 or 1002:*",
            )
    return models


def looks_like_gpu(class_code: str) -> bool:
    """Tell by its class, hex digits, whether a function is a display controller or an accelerator."""
    return class_code[:4] in _CLASSES


def candidates(facts: HostFacts) -> tuple[PciFunction, ...]:
    """Display controllers and accelerators, whether or not they may be handed out, by address."""
    return tuple(each for each in facts.functions if looks_like_gpu(each.class_code))


def pool(facts: HostFacts) -> tuple[PciFunction, ...]:
    """The functions that may be handed out whole. Cost: functions times group sizes."""
    return tuple(each for each in candidates(facts) if not why_ignored(each, facts))


def ignored(facts: HostFacts) -> dict[str, str]:
    """Why each candidate that is not in the pool is left alone, by address."""
    found = {each.address: why_ignored(each, facts) for each in candidates(facts)}
    return {address: why for address, why in found.items() if why}


def why_ignored(function: PciFunction, facts: HostFacts) -> str:
    """Say in one sentence why a function is not in the pool; empty for one that is."""
    why = not_allowed(function, facts.gpu_models)
    if why:
        return why
    if function.physical_function is not None:
        return f"a virtual function of {function.physical_function}; whole GPUs only"
    if function.group is None:
        return "in no IOMMU group: nothing confines its DMA"
    if not function.reset_methods:
        return "the kernel knows no way to reset it"
    others = strangers(function, facts)
    if others:
        return f"shares IOMMU group {function.group} with {', '.join(each.address for each in others)}"
    return ""


def strangers(function: PciFunction, facts: HostFacts) -> tuple[PciFunction, ...]:
    """Who else is in a function's IOMMU group, bridges left out."""
    if function.group is None:
        return ()
    members = facts.group_members(function.group)
    return tuple(each for each in members if not each.is_bridge and each.address != function.address)


def not_allowed(function: PciFunction, models: tuple[str, ...]) -> str:
    """Say why a host's rule leaves a function alone, whatever its state; empty where the rule allows it."""
    ids, code = f"{function.vendor}:{function.device}", function.class_code[:4]
    if not looks_like_gpu(code):
        return f"class {function.class_code} is neither a display controller nor an accelerator"
    if ids in models or f"{function.vendor}:*" in models:
        return ""
    if DATA_CENTRE in models and function.device in _DATA_CENTRE.get(function.vendor, ()):
        return ""
    if DISPLAY not in models or code not in _DISPLAY_CLASSES:
        return f"{ids} is not among the models that this host's settings allow"
    if function.vendor in _MANAGEMENT_VENDORS:
        return f"{ids} is a server's management display"
    if function.boot_display:
        return "the firmware's console is on it; name its model in gpu_models to hand it out all the same"
    return ""
