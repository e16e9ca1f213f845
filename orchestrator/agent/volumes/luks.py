"""Makes LUKS files and writes images into them.

Decides the cipher, explicitly, and believes the header rather than qemu-img. Never sees a path of the
passphrase: it goes by descriptor. `LuksVolumes` calls it.
"""

from __future__ import annotations

import os

from orchestrator.agent.volumes.qemuimg import QemuImg, secret_descriptor
from orchestrator.isolation.luks import HEADER_BYTES, MAX_PAYLOAD_BYTES, header_problems, parse_header
from orchestrator.model.errors import EvidenceError, HostError

#: The passphrase is 32 random bytes, so a costly derivation would protect nothing; below this, qemu-img's own
#: calibration gives up more often.
_ITER_TIME_MS = 20
#: qemu-img times its key derivation by the thread's CPU clock and gives up where that clock stands still.
_CALIBRATION_FAILED = "Unable to get accurate CPU usage"
_CALIBRATION_TRIES = 20
_OPTIONS = (
    "key-secret=k0,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,"
    f"iter-time={_ITER_TIME_MS}"
)


def format_volume(qemu_img: QemuImg, volume_fd: int, size_bytes: int, passphrase: bytes) -> None:
    """Make an empty LUKS volume in the open file and see that its header is as it must be.

    Raises:
        EvidenceError: `volume.header_wrong`.
        HostError, CapacityError: as `QemuImg.run`.
    """
    for attempt in range(1, _CALIBRATION_TRIES + 1):
        os.ftruncate(volume_fd, 0)
        try:
            with secret_descriptor(passphrase, qemu_img.uid) as secret:
                qemu_img.run(
                    [
                        *("create", "-q", "-f", "luks"),
                        *("--object", f"secret,id=k0,file=/dev/fd/{secret}"),
                        *("-o", _OPTIONS, f"/dev/fd/{volume_fd}", str(size_bytes)),
                    ],
                    [secret, volume_fd],
                    size_bytes + MAX_PAYLOAD_BYTES,
                )
            break
        except HostError as exc:
            if _CALIBRATION_FAILED not in exc.message or attempt == _CALIBRATION_TRIES:
                raise
    check_header(volume_fd, size_bytes)


def check_header(volume_fd: int, size_bytes: int) -> None:
    """See that the open file is a LUKS volume of this size, encrypted as it must be.

    Raises:
        EvidenceError: `volume.header_wrong`.
    """
    header = parse_header(os.pread(volume_fd, HEADER_BYTES, 0))
    problems = header_problems(header)
    if header is not None and not problems:
        has = os.fstat(volume_fd).st_size
        if has != header.payload_bytes + size_bytes:
            problems = (f"the file has {has} bytes, not {header.payload_bytes} + {size_bytes}",)
    if problems:
        raise EvidenceError("volume.header_wrong", "; ".join(problems))


def write_image(
    qemu_img: QemuImg, image_fd: int, volume_fd: int, passphrase: bytes, largest_bytes: int
) -> None:
    """Write an open raw image into the open, formatted volume, from its first sector.

    Raises:
        HostError, CapacityError: as `QemuImg.run`.
    """
    # Both formats are said: whatever the image's bytes look like, they are bytes.
    target = f"driver=luks,key-secret=k0,file.driver=file,file.filename=/dev/fd/{volume_fd}"
    with secret_descriptor(passphrase, qemu_img.uid) as secret:
        qemu_img.run(
            [
                *("convert", "-q", "-n", "-f", "raw"),
                *("--object", f"secret,id=k0,file=/dev/fd/{secret}"),
                *("--target-image-opts", f"/dev/fd/{image_fd}", target),
            ],
            [secret, image_fd, volume_fd],
            largest_bytes,
        )
