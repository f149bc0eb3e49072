"""Prometheus's alerting rules over the metrics of mlxrt.telemetry.metrics, and what to do about
each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from mlxrt.addresses import OFF
from mlxrt.config import ConfigError, Settings


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule.

    Attributes:
        when: the expression, over `{job}`.
        minutes: how long it must hold.
        summary: what is the matter.
        remedy: what to look at and to do.
    """

    name: str
    severity: str
    when: str
    minutes: int
    summary: str
    remedy: str


_EVERYDAY = "NO_FREE_BLOCKS|TOO_MANY_INFLIGHT_STEPS|DRAINING|LOADING"
"""Reasons that a sound client hears too."""
_GRAVE = "EXECUTION_FAILED|DEVICE_LOST|INTERNAL_DEFECT"


def _news(counter: str) -> str:
    """Whether a counter rose; one that was not there before counts from 0."""
    return f"({counter} unless {counter} offset 15m) > 0 or increase({counter}[15m]) > 0"


def _phase_rate(mine: str, phase: str) -> str:
    chosen = f'mlxrt_step_duration_seconds_sum{{{mine}, phase="{phase}"}}[5m]'
    return f"sum by (instance) (rate({chosen}))"


def rules(settings: Settings, job: str) -> tuple[Alert, ...]:
    """The alerts, for servers with these settings."""
    mine = f"job={json.dumps(job)}"
    return (*_of_health(settings, mine), *_of_clients(settings, mine), *_of_steps(mine))


def _of_health(settings: Settings, mine: str) -> tuple[Alert, ...]:
    return (
        Alert(
            "MlxrtDown", "critical", f"up{{{mine}}} == 0", 2, "The server can't be scraped.",
            "It is gone, or its event loop hangs. Look at its exit code and at the end of its log; "
            "2 to 5 are configuration, model, ABI, memory; 6 is a lost device.",
        ),
        Alert(
            "MlxrtNotReady", "critical", f"mlxrt_ready{{{mine}}} == 0", 10,
            "The server takes no new work.",
            "mlxrt_server_state says whether it loads, drains or has failed; SERVING and not ready "
            "is a stall.",
        ),
        Alert(
            "MlxrtEngineStalls", "critical",
            f"mlxrt_executor_heartbeat_age_seconds{{{mine}}} > {settings.stall_seconds / 2:g}", 0,
            "A step has taken half of stall_seconds.",
            "Health says NOT_SERVING at stall_seconds. Is the device shared, hot, or swapping? A "
            "device that never answers needs a restart: sessions are lost with it.",
        ),
    )  # fmt: skip


def _of_clients(settings: Settings, mine: str) -> tuple[Alert, ...]:
    idle_s = max(300, math.ceil(settings.limits.max_lease_ttl_ms / 1000))
    return (
        Alert(
            "MlxrtQueueGrows", "warning",
            f"{_phase_rate(mine, 'queue')} > 0.8 * {_phase_rate(mine, 'total')}", 10,
            "Steps wait for the engine for four fifths of their time.",
            "Sessions share one engine in turn: fewer sessions, or smaller steps of the largest.",
        ),
        Alert(
            "MlxrtBlocksLeak", "warning",
            f"sum by (instance) (mlxrt_kv_blocks_allocated{{{mine}}}) > 0 "
            f"and on (instance) mlxrt_sessions_open{{{mine}}} == 0", 5,
            "Blocks are leased and no session is open.",
            "That can't be: report it with the log. A restart frees them.",
        ),
        Alert(
            "MlxrtBlocksHeldIdle", "warning",
            f"min by (instance) (mlxrt_kv_blocks_free{{{mine}}}) == 0 and on (instance) "
            f"sum by (instance) (increase(mlxrt_steps_total{{{mine}}}[{idle_s}s])) == 0",
            5, "No block is free, and nobody computes.",
            "A client renews its lease and does nothing: find it by client_name in the log.",
        ),
        Alert(
            "MlxrtLeasesExpire", "warning",
            f"increase(mlxrt_lease_expirations_total{{{mine}}}[15m]) > 3", 0,
            "Schedulers vanish without closing their sessions.",
            "They crash, or their network does, or their renewal is too slow for their lease.",
        ),
        Alert(
            "MlxrtRefusals", "warning",
            "sum by (instance, reason) "
            f'(rate(mlxrt_rejections_total{{{mine}, reason!~"{_EVERYDAY}"}}[5m])) > 1', 10,
            "Calls are refused for {{ $labels.reason }}.",
            "A client is wrong about the contract or about its own state; protos/README.md has the "
            "remedy for each reason.",
        ),
    )  # fmt: skip


def _of_steps(mine: str) -> tuple[Alert, ...]:
    return (
        Alert(
            "MlxrtStepsFail", "critical",
            _news(f'mlxrt_step_failures_total{{{mine}, reason=~"{_GRAVE}"}}'), 0,
            "Accepted steps fail: {{ $labels.reason }}.",
            "The log has the cause of each; INTERNAL_DEFECT is a defect of mlxrt, to be reported.",
        ),
        Alert(
            "MlxrtSequencesPoisoned", "warning",
            _news(f"mlxrt_sequences_poisoned_total{{{mine}}}"), 0,
            "Sequences get NaN or infinite logits.",
            "The checkpoint or its dtype: `mlxrt check` compares it with mlx-lm.",
        ),
        Alert(
            "MlxrtMemory", "warning",
            f'mlxrt_memory_bytes{{{mine}, kind="active"}} > on (instance) '
            f'0.95 * mlxrt_memory_bytes{{{mine}, kind="limit"}}', 5,
            "Memory in use is near the limit of the plan.",
            "Lower memory_fraction, num_blocks or limits.max_step_rows; `mlxrt check` prints the "
            "plan.",
        ),
    )  # fmt: skip


def alerts(settings: Settings, job: str) -> str:
    """The rules as YAML, with the scrape that they are about as a comment.

    Raises:
        ConfigError: the server has no metrics.
    """
    if settings.metrics_address == OFF:
        raise ConfigError("metrics_address: off, so there is nothing to alert on")
    lines = [
        "# Alerts on mlxrt. Written by `mlxrt deploy print prometheus-alerts`. Prometheus scrapes:",
        f"#   - job_name: {json.dumps(job)}",
        f"#     static_configs: [{{targets: [{json.dumps(settings.metrics_address)}]}}]",
        "groups:",
        "  - name: mlxrt",
        "    rules:",
    ]
    for rule in rules(settings, job):
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {json.dumps(rule.when)}",
            f"        for: {rule.minutes}m",
            f"        labels: {{severity: {rule.severity}}}",
            "        annotations:",
            f"          summary: {json.dumps('{{ $labels.instance }}: ' + rule.summary)}",
            f"          description: {json.dumps(rule.remedy)}",
        ]
    return "\n".join(lines) + "\n"
