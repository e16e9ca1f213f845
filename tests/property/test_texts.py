"""What holds for any CPU list, PCI address and LUKS header, however wild."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.isolation.luks import HEADER_BYTES, LuksHeader, header_problems, parse_header
from orchestrator.model.cpus import MAX_CPU, format_cpu_list, parse_cpu_list
from orchestrator.model.pci import PCI_ADDRESS_PATTERN, PciAddress, parse_pci_address

cpus = st.frozensets(st.integers(0, 1023), max_size=60)
addresses = st.builds(
    PciAddress, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)


def good_header() -> bytes:
    """A header as it must be, built from the specification (LUKS On-Disk Format 1.2.3), not by our code."""
    head = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        b"LUKS\xba\xbe",
        1,
        b"aes",
        b"xts-plain64",
        b"sha256",
        4040,
        64,
        b"d" * 20,
        b"s" * 32,
        1000,
        b"5b0d1a52-6f7e-4d0e-9c39-7d0c5a8b1f11",
    )
    slots = [
        struct.pack(">II32sII", 0x00AC71F3 if index == 0 else 0x0000DEAD, 9, b"", 8 + 504 * index, 4000)
        for index in range(8)
    ]
    return head + b"".join(slots)


GOOD = good_header()


@given(cpus)
def test_cpu_list_comes_back(numbers: frozenset[int]) -> None:
    assert parse_cpu_list(format_cpu_list(numbers)) == numbers


@given(cpus)
def test_cpu_list_is_short_and_sorted(numbers: frozenset[int]) -> None:
    text = format_cpu_list(numbers)
    ends = [int(end) for end in re.findall(r"\d+", text)]
    assert ends == sorted(set(ends))
    # Neighbouring parts would have been one range.
    parts = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    assert all(before[-1] + 1 < after[0] for before, after in pairwise(parts))


@given(st.lists(st.integers(0, 300), max_size=20))
def test_cpu_list_order_and_doubles_do_not_matter(numbers: list[int]) -> None:
    assert parse_cpu_list(",".join(map(str, numbers))) == frozenset(numbers)


@given(st.text(alphabet="0123456789,- \nx²", max_size=9))
@example("-1")
@example("3-1")
@example("1-2-3")
@example("0-\n")
@example("0-8191")
@example("0-8192")
@example("0-999999999")
def test_cpu_list_refuses_in_one_way(text: str) -> None:
    with suppress(ValueError):
        assert all(0 <= number <= MAX_CPU for number in parse_cpu_list(text))


@given(addresses)
def test_pci_address_comes_back(address: PciAddress) -> None:
    assert parse_pci_address(str(address)) == address
    assert re.fullmatch(PCI_ADDRESS_PATTERN, str(address))


@given(addresses)
def test_pci_address_has_one_form(address: PciAddress) -> None:
    """NVML's eight digits in upper case and sysfs' four name the same function."""
    nvml = f"{address.domain:08X}:{address.bus:02X}:{address.slot:02X}.{address.function}"
    assert str(parse_pci_address(nvml)) == str(address)


@given(st.text(max_size=20) | st.from_regex(r"[0-9a-fA-F:.]{1,18}"))
@example("0000:21:20.0")
@example("0000:21:00.8")
@example("")
def test_pci_address_is_read_or_refused(text: str) -> None:
    try:
        address = parse_pci_address(text)
    except ValueError:
        return
    assert re.fullmatch(PCI_ADDRESS_PATTERN, str(address))


@pytest.mark.parametrize("text", ["0000:21:20.0", "0000:21:00.8", "21.0", "g:21:00.0", "0000:21:00.0x", ""])
def test_wrong_pci_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"PCI address|slots 00 to 1f"):
        parse_pci_address(text)


def test_good_header_is_good() -> None:
    assert header_problems(parse_header(GOOD)) == ()


@given(
    st.binary(max_size=2 * HEADER_BYTES) | st.binary(max_size=HEADER_BYTES).map(lambda end: GOOD[:6] + end)
)
def test_luks_reads_any_bytes(raw: bytes) -> None:
    header = parse_header(raw)
    assert (header is None) == (len(raw) < HEADER_BYTES)
    assert header_problems(header)


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_luks_reads_a_damaged_header(at: int, flip: int) -> None:
    """One byte wrong: never an exception, and never approved where it says how data is encrypted."""
    raw = bytearray(GOOD)
    raw[at] ^= flip
    header = parse_header(bytes(raw))
    assert isinstance(header, LuksHeader)
    problems = header_problems(header)
    said = (
        *range(6 + 2 + len(b"aes")),
        *range(40, 40 + len(b"xts-plain64")),
        *range(72, 72 + len(b"sha256")),
    )
    if at in said or 108 <= at < 112:
        assert problems


@given(st.integers(0, HEADER_BYTES - 1))
def test_luks_refuses_a_header_cut_short(length: int) -> None:
    assert parse_header(GOOD[:length]) is None
    assert header_problems(None) == ("too short for a LUKS header",)


@pytest.mark.parametrize("text", ["00000000:21:00.0", "00010:21:00.0", "0000:21:00.0\n", "000:21:00.0"])
def test_pci_address_has_no_second_spelling(text: str) -> None:
    assert not re.fullmatch(PCI_ADDRESS_PATTERN, text)
