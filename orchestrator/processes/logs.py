"""How a process logs: one JSON object a line on stderr, from a level on. `processes` calls it first thing."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: int = logging.INFO) -> None:
    """Send everything of our own and of the libraries to stderr; stdout is for data."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s", force=True)
    # Every call is logged by our own layer with its request id; the servers' own lines would say it again.
    logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up with each line: one that kept a stderr which was closed since would fail whoever logs.
        logger_factory=lambda *_name: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
