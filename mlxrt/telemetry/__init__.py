"""Telemetry: structured logs."""

from mlxrt.telemetry.logs import configure_logs

__all__ = ["configure_logs"]
