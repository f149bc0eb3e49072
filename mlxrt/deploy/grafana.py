"""A Grafana dashboard over the metrics of mlxrt.telemetry.metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_WIDTH, _COLUMNS, _HEIGHT = 24, 3, 8
_SCHEMA_VERSION = 39
"""Of Grafana 10 and later."""
_MINE = 'instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph.

    Attributes:
        queries: legend and expression of each line.
        unit: as Grafana names it.
        about: what to look for.
    """

    title: str
    unit: str
    about: str
    queries: tuple[tuple[str, str], ...]


def _rate(metric: str, by: str = "instance", matching: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{_MINE}{matching}}}[$__rate_interval]))"


def _sum(metric: str, by: str = "instance") -> str:
    return f"sum by ({by}) ({metric}{{{_MINE}}})"


def _share(share: float, metric: str, matching: str = "", by: str = "le") -> str:
    chosen = f"{{{_MINE}{matching}}}[$__rate_interval]"
    return f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{chosen})))"


def _phase(share: float, phase: str) -> tuple[str, str]:
    matching = f', phase="{phase}"'
    return f"{phase} p{share * 100:g}", _share(share, "mlxrt_step_duration_seconds", matching)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it well": (
        Panel("Ready", "bool_yes_no", "What health answers for readiness.",
              (("{{instance}}", _sum("mlxrt_ready")),)),
        Panel("Engine's last sign of life", "s",
              "Near 0; a step that hangs lets it climb to stall_seconds and past.",
              (("{{instance}}", _sum("mlxrt_executor_heartbeat_age_seconds")),)),
        Panel("Calls that failed", "reqps", "By status code, OK left out.",
              (("{{grpc_method}} {{grpc_code}}",
                _rate("grpc_server_handled_total", "grpc_method, grpc_code",
                      ', grpc_code!="OK"')),)),
    ),
    "Throughput": (
        Panel("Tokens", "short", "A second.",
              (("generated", _rate("mlxrt_generated_tokens_total", "job")),
               ("prompt", _rate("mlxrt_prompt_tokens_total", "job")))),
        Panel("Steps", "ops", "A second, by kind and how they ended.",
              (("{{kind}} {{outcome}}", _rate("mlxrt_steps_total", "kind, outcome")),)),
        Panel("Rows of a forward", "short", "Padding is work for nothing.",
              (("{{kind}}", _rate("mlxrt_forward_rows_total", "kind")),)),
    ),
    "Where a step's time goes": (
        Panel("From acceptance to reply", "s", "All steps.",
              (_phase(0.5, "total"), _phase(0.99, "total"))),
        Panel("Parts, p50", "s", "Queue: waiting for earlier steps.",
              tuple(_phase(0.5, phase) for phase in ("queue", "build", "device", "sample"))),
        Panel("Waiting for the engine", "short", "In flight, and not yet with the engine.",
              (("in flight", _sum("mlxrt_steps_inflight")),
               ("waiting", _sum("mlxrt_executor_queue_length")))),
        Panel("Sequences of a step", "short", "The batch.",
              (("p50", _share(0.5, "mlxrt_step_sequences")),
               ("p99", _share(0.99, "mlxrt_step_sequences")))),
        Panel("Rows of a step", "short", "Prefill and decode together.",
              (("p50", _share(0.5, "mlxrt_step_tokens")),
               ("p99", _share(0.99, "mlxrt_step_tokens")))),
        Panel("Calls, p99", "s", "Unary ones; a stream lasts as long as its client.",
              (("{{grpc_method}}",
                _share(0.99, "grpc_server_handling_seconds", ', grpc_type="unary"',
                       "le, grpc_method")),)),
    ),
    "What clients hold": (
        Panel("Blocks", "short", "Allocated against capacity; full is the schedulers' business.",
              (("capacity, group {{group}}", _sum("mlxrt_kv_blocks_capacity", "group")),
               ("allocated, group {{group}}", _sum("mlxrt_kv_blocks_allocated", "group")),
               ("shared, group {{group}}", _sum("mlxrt_kv_blocks_shared", "group")))),
        Panel("Blocks leased and given back", "ops", "By what ended the lease.",
              (("leased", _rate("mlxrt_block_allocations_total", "job")),
               ("{{cause}}", _rate("mlxrt_block_frees_total", "cause")))),
        Panel("Sessions and sequences", "short", "Open and registered.",
              (("sessions", _sum("mlxrt_sessions_open")),
               ("sequences", _sum("mlxrt_sequences_resident")))),
    ),
    "What goes wrong": (
        Panel("Refusals", "reqps", "By reason; protos/README.md says what each means.",
              (("{{reason}}", _rate("mlxrt_rejections_total", "reason")),)),
        Panel("Failures", "ops", "Steps that did not commit, sequences that failed alone.",
              (("step {{reason}}", _rate("mlxrt_step_failures_total", "reason")),
               ("sequence {{reason}}", _rate("mlxrt_sequences_poisoned_total", "reason")))),
        Panel("Clients lost and found", "ops", "Not renewed, taken over, a step sent twice.",
              (("lease expired", _rate("mlxrt_lease_expirations_total")),
               ("taken over", _rate("mlxrt_session_takeovers_total")),
               ("step repeated", _rate("mlxrt_step_replays_total")))),
    ),
    "Memory": (
        Panel("Memory", "bytes", "Active against the limit; weights and pool as planned.",
              (("{{kind}}", _sum("mlxrt_memory_bytes", "kind")),)),
        Panel("Loading", "s", "From start to ready.",
              (("{{instance}}", _sum("mlxrt_model_load_seconds")),)),
        Panel("Versions", "short", "What serves.",
              (("{{version}} {{model}} {{device}} {{attention_path}}",
                _sum("mlxrt_build_info", "version, model, device, attention_path")),)),
    ),
}  # fmt: skip


def dashboard() -> str:
    """The dashboard as JSON, for Grafana's import."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(_placed({"type": "row", "title": title, "collapsed": False, "panels": []},
                              len(panels), 0, top, _WIDTH, 1))  # fmt: skip
        top += 1
        width = _WIDTH // _COLUMNS
        for index, panel in enumerate(row):
            left, below = index % _COLUMNS * width, index // _COLUMNS * _HEIGHT
            content = _graph(panel)
            panels.append(_placed(content, len(panels), left, top + below, width, _HEIGHT))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    content = {
        "title": "mlxrt", "uid": "mlxrt", "tags": ["mlxrt"], "timezone": "browser",
        "schemaVersion": _SCHEMA_VERSION, "refresh": "30s", "editable": True,
        "time": {"from": "now-3h", "to": "now"}, "graphTooltip": 1,
        "templating": {"list": _VARIABLES}, "panels": panels,
    }  # fmt: skip
    return json.dumps(content, indent=2) + "\n"


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_VARIABLES: list[dict[str, Any]] = [
    {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
    {
        "name": "instance", "type": "query", "label": "Server", "datasource": _SOURCE,
        "query": {"query": "label_values(mlxrt_build_info, instance)", "refId": "instance"},
        "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    },
]  # fmt: skip


def _graph(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries", "title": panel.title, "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend,
             "datasource": _SOURCE}
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }  # fmt: skip


def _placed(
    content: dict[str, Any], index: int, left: int, top: int, width: int, height: int
) -> dict[str, Any]:
    place = {"x": left, "y": top, "w": width, "h": height}
    return {"id": index + 1, "gridPos": place, **content}
