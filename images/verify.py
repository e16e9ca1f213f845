"""Puts a raw image into a host's image cache under its digest, after the checks that come before every use.

`python -m images.verify FILE [--cache DIR] [--digest sha256:...]` prints how an assignment names the image.
Never fetches. The lab harness and `make run` call `import_image`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from orchestrator.agent.volumes.images import ImageCache
from orchestrator.model.assignment import ImageRef
from orchestrator.model.errors import BulkheadError

DEFAULT_CACHE = Path("/var/lib/bulkhead/images")


def import_image(source: Path, cache: Path = DEFAULT_CACHE, digest: str | None = None) -> ImageRef:
    """Copy a raw image into a cache and look at it there once more, as a volume's creation will.

    Raises:
        BulkheadError: as `ImageCache.add` and `ImageCache.verified`.
    """
    images = ImageCache(cache)
    image = images.add(source, digest)
    with images.verified(image):
        return image


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m images.verify", description="Import a raw image by digest."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--digest", help="what the image must be")
    told = parser.parse_args(arguments)
    try:
        image = import_image(told.file, told.cache, told.digest)
    except BulkheadError as exc:
        sys.stderr.write(exc.explain() + "\n")
        return exc.exit_code
    sys.stdout.write(json.dumps(image.model_dump(mode="json"), sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
