"""What a LUKS1 header says and what is wrong with it.

Decides from bytes whether a volume is encrypted as it must be: aes-xts-plain64, 64 bytes of key, sha256, one
passphrase. Never opens a file and never sees a key. The volume driver calls it after creation, the inspector
whenever it looks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: LUKS On-Disk Format Specification 1.2.3, figures 1 and 3.
MAGIC = b"LUKS\xba\xbe"
HEADER_BYTES = 592
SECTOR_BYTES = 512
STRIPES = 4000
_HEAD = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_SLOTS = 8
_ACTIVE = 0x00AC71F3
_INACTIVE = 0x0000DEAD

CIPHER = "aes"
CIPHER_MODE = "xts-plain64"
HASH = "sha256"
KEY_BYTES = 64
#: Eight slots of 64-byte keys end at 2 068 480 bytes; more than 16 MiB in front of the data is not from us.
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class KeySlot:
    """One of the eight places for a passphrase."""

    #: None where the marker is neither of the two that exist.
    active: bool | None
    iterations: int
    material_sector: int
    stripes: int


@dataclass(frozen=True)
class LuksHeader:
    """A LUKS1 header, without digest, salts and key material."""

    magic: bytes
    version: int
    cipher: str
    cipher_mode: str
    hash: str
    payload_sector: int
    key_bytes: int
    uuid: str
    slots: tuple[KeySlot, ...]

    @property
    def payload_bytes(self) -> int:
        """Where the encrypted data starts."""
        return self.payload_sector * SECTOR_BYTES


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")


def parse_header(raw: bytes) -> LuksHeader | None:
    """Read a file's first 592 bytes, wrong values too; None when there are fewer."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, version, cipher, mode, digest, payload, key_bytes, _, _, _, uuid = _HEAD.unpack_from(raw)
    slots = []
    for index in range(_SLOTS):
        marker, iterations, _, offset, stripes = _SLOT.unpack_from(raw, _HEAD.size + index * _SLOT.size)
        active = {_ACTIVE: True, _INACTIVE: False}.get(marker)
        slots.append(KeySlot(active, iterations, offset, stripes))
    return LuksHeader(
        magic=magic,
        version=version,
        cipher=_text(cipher),
        cipher_mode=_text(mode),
        hash=_text(digest),
        payload_sector=payload,
        key_bytes=key_bytes,
        uuid=_text(uuid),
        slots=tuple(slots),
    )


def header_problems(header: LuksHeader | None) -> tuple[str, ...]:
    """Say what is wrong, one phrase each; empty when the volume is encrypted as it must be."""
    if header is None:
        return ("too short for a LUKS header",)
    if header.magic != MAGIC:
        return ("no LUKS header",)
    if header.version != 1:
        return (f"LUKS version {header.version}, not 1",)
    wanted = (
        ("cipher", header.cipher, CIPHER),
        ("cipher mode", header.cipher_mode, CIPHER_MODE),
        ("hash", header.hash, HASH),
        ("key bytes", header.key_bytes, KEY_BYTES),
    )
    found = [f"{name} is {actual!r}, not {right!r}" for name, actual, right in wanted if actual != right]
    return tuple(found) + _slot_problems(header) + _payload_problems(header)


def _slot_problems(header: LuksHeader) -> tuple[str, ...]:
    found = [f"key slot {i} has an unknown marker" for i, s in enumerate(header.slots) if s.active is None]
    active = sum(slot.active is True for slot in header.slots)
    if active != 1:
        found.append(f"{active} active key slots, not 1")
    return tuple(found)


def _payload_problems(header: LuksHeader) -> tuple[str, ...]:
    """The payload lies behind all key material, and not far away."""
    if header.payload_bytes > MAX_PAYLOAD_BYTES:
        return (f"payload starts at {header.payload_bytes} bytes, beyond {MAX_PAYLOAD_BYTES}",)
    material_sectors = -(-KEY_BYTES * STRIPES // SECTOR_BYTES)
    for index, slot in enumerate(header.slots):
        if slot.stripes != STRIPES:
            return (f"key slot {index} has {slot.stripes} stripes, not {STRIPES}",)
        ends = slot.material_sector + material_sectors
        if slot.material_sector * SECTOR_BYTES < HEADER_BYTES or ends > header.payload_sector:
            return (f"key slot {index} lies outside the header, which ends at {header.payload_bytes} bytes",)
    return ()
