"""Prepares hosts from the operator's machine: the playbooks, run by ansible-runner in a process of its own.

`targets` says which hosts, `code` builds what they get, `runner` runs a playbook and reads its events,
`outcome` makes of the events what became of each host. Nothing of it touches a controller: the command line
joins the two. No credential is kept: ssh's keys are the operator's own, and what a run is told lies on tmpfs
and goes away with it.
"""

from __future__ import annotations

from hostprep.run.code import build_wheel, checkout
from hostprep.run.outcome import HostOutcome, Outcomes, State
from hostprep.run.runner import PlaybookRun, run_playbook
from hostprep.run.targets import Login, Targets, from_inventory, from_names

__all__ = [
    "HostOutcome",
    "Login",
    "Outcomes",
    "PlaybookRun",
    "State",
    "Targets",
    "build_wheel",
    "checkout",
    "from_inventory",
    "from_names",
    "run_playbook",
]
