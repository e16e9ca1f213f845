"""libvirt's errors in ours: code, class, whether trying again may help, and what is left of the words."""

from __future__ import annotations

import libvirt
import pytest

from orchestrator.agent.libvirt.errors import clean, is_gone, translate
from orchestrator.model.errors import ConflictError, HostError, NotFoundError
from tests.unit.libvirt.conftest import refusal

CASES = [
    (libvirt.VIR_ERR_NO_DOMAIN, NotFoundError, "domain.not_found", False),
    (libvirt.VIR_ERR_NO_SECRET, NotFoundError, "domain.not_found", False),
    (libvirt.VIR_ERR_OPERATION_INVALID, ConflictError, "domain.start_conflict", False),
    (libvirt.VIR_ERR_DOM_EXIST, ConflictError, "domain.start_conflict", False),
    (libvirt.VIR_ERR_XML_ERROR, HostError, "domain.start_failed", False),
    (libvirt.VIR_ERR_XML_INVALID_SCHEMA, HostError, "domain.start_failed", False),
    (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, HostError, "domain.start_failed", False),
    (libvirt.VIR_ERR_NO_SUPPORT, HostError, "domain.start_failed", False),
    (libvirt.VIR_ERR_INTERNAL_ERROR, HostError, "domain.start_failed", True),
    (libvirt.VIR_ERR_OPERATION_TIMEOUT, HostError, "domain.start_failed", True),
    (libvirt.VIR_ERR_SYSTEM_ERROR, HostError, "domain.start_failed", True),
]


@pytest.mark.parametrize(("number", "kind", "code", "retryable"), CASES)
def test_translation(number, kind, code, retryable):
    made = translate(refusal(number, "it said so"), "domain", "start", "vm_a")
    assert (type(made), made.code, made.retryable) == (kind, code, retryable)
    assert "vm_a" in made.message
    assert "it said so" in made.message


def test_refusal_for_good_is_of_one_error_alone():
    translate(refusal(libvirt.VIR_ERR_XML_ERROR), "domain", "define", "vm_a")
    assert HostError.retryable


def test_only_a_failed_start_points_at_qemus_log():
    failed = refusal(libvirt.VIR_ERR_INTERNAL_ERROR)
    assert translate(failed, "domain", "start", "vm_a").hint == "read /var/log/libvirt/qemu/vm_a.log"
    assert translate(failed, "domain", "stop", "vm_a").hint is None
    assert translate(failed, "secret", "put", "vol_a").hint is None


def test_gone():
    assert is_gone(refusal(libvirt.VIR_ERR_NO_DOMAIN))
    assert is_gone(refusal(libvirt.VIR_ERR_NO_SECRET))
    assert not is_gone(refusal(libvirt.VIR_ERR_INTERNAL_ERROR))


def test_words_are_one_printable_line_of_bounded_length():
    assert clean("a\n\tb\x1b[2Jc\x00  d\u2028e") == "a b [2Jc d e"
    long = clean("x" * 10_000)
    assert (len(long), long[-1]) == (600, "…")
    assert clean("x" * 600) == "x" * 600


def test_error_without_words_is_still_told():
    made = translate(libvirt.libvirtError("told by nobody"), "domain", "list", "domains")
    assert (made.code, "told by nobody" in made.message) == ("domain.list_failed", True)
