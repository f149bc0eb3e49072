"""Structured logs by structlog: JSON lines, or a console form on a terminal. All go to standard
error."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure_logs(
    log_format: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Sets the process's logs up, the standard library's loggers included. Idempotent; call before
    the first log line.

    Args:
        log_format: auto is console where standard error is a terminal, else json.
        level: lowest level written.
    """
    on_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    closing: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    if on_console:
        closing.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        closing += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=closing)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # grpc.aio logs each aborted call with a traceback here; those are answers, not defects.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
