"""Makes files equal to what standard input says, a JSON list of {dest, mode, text}; runs on the host.

Prints `changed: DEST` for each that differed; with DRY=1 it does no more. A file is written beside its place
and moved: it is there whole or not at all.
"""

import json
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Do it."""
    for each in json.load(sys.stdin):
        dest, text, mode = Path(each["dest"]), each["text"].encode(), int(each.get("mode", "644"), 8)
        if not _is(dest, text, mode):
            print("changed:", dest)
            if not os.environ.get("DRY"):
                _write(dest, text, mode)


def _is(dest: Path, text: bytes, mode: int) -> bool:
    try:
        return not dest.is_symlink() and dest.read_bytes() == text and dest.stat().st_mode & 0o7777 == mode
    except OSError:
        return False


def _write(dest: Path, text: bytes, mode: int) -> None:
    handle, name = tempfile.mkstemp(prefix=".bulkhead-", dir=dest.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(dest)
    except BaseException:
        Path(name).unlink()
        raise


main()
