"""Frames as bytes, for what field names cannot say: tags in tags, pieces, headers that break off."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

TPID_CUSTOMER, TPID_SERVICE = 0x8100, 0x88A8
UDP, ICMP, ICMPV6 = 17, 1, 58
FRAGMENT, DESTINATION_OPTIONS, ROUTING, NO_NEXT_HEADER = 44, 60, 43, 59


def ethernet(target: str, source: str, payload: bytes, *tags: tuple[int, int]) -> bytes:
    """A frame; the payload starts with its ethertype; tags are (TPID, TCI), outermost first."""
    tagged = b"".join(struct.pack(">HH", tpid, tci) for tpid, tci in tags)
    return _mac(target) + _mac(source) + tagged + payload


def ipv4(
    source: str, target: str, protocol: int, payload: bytes, *, more: bool = False, offset: int = 0
) -> bytes:
    """Ethertype and packet; `offset` counts units of 8 bytes."""
    pieces = int(more) << 13 | offset
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, pieces, 64, protocol, 0)
    return b"\x08\x00" + head + _address(source) + _address(target) + payload


def ipv6(source: str, target: str, next_header: int, payload: bytes) -> bytes:
    """Ethertype and packet."""
    head = struct.pack(">IHBB", 0x60000000, len(payload), next_header, 255)
    return b"\x86\xdd" + head + _address(source) + _address(target) + payload


def udp(target_port: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", 4000, target_port, 8 + len(payload), 0) + payload


def fragment(next_header: int, *, more: bool, offset: int = 0) -> bytes:
    """IPv6's fragment header (RFC 8200 §4.5)."""
    return struct.pack(">BBHI", next_header, 0, offset << 3 | int(more), 7)


def options(next_header: int, *, claims_bytes: int = 8) -> bytes:
    """The first 8 bytes of a header of IPv6 options (padding) that says it is `claims_bytes` long."""
    return bytes((next_header, claims_bytes // 8 - 1, 1, 4, 0, 0, 0, 0))


def advertisement(of: str, link: str) -> bytes:
    """ICMPv6 neighbour advertisement with its link-layer option (RFC 4861 §4.4)."""
    return bytes((136, 0, 0, 0, 0x20, 0, 0, 0)) + _address(of) + b"\x02\x01" + _mac(link)


#: ICMPv6 router advertisement without options (RFC 4861 §4.2).
ROUTER_ADVERTISEMENT = bytes((134, 0, 0, 0, 64, 0, 7, 8)) + bytes(8)


def captured(path: Path) -> list[bytes]:
    """The frames in a pcap file, of any byte order; a frame that is still being written is left out."""
    raw = path.read_bytes() if path.exists() else b""
    order = "<" if raw[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    frames, at = [], 24
    while at + 16 <= len(raw):
        (length,) = struct.unpack_from(f"{order}I", raw, at + 8)
        if at + 16 + length > len(raw):
            break
        frames.append(raw[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed
