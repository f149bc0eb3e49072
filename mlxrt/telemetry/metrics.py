"""Every metric that the server exports: name, type, labels, meaning. The one table.

`mlxrt.server.scrape` fills it, the README's table is generated from it, and
`tests/service/test_metrics.py` moves each of its metrics over the wire.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass


class MetricKind(enum.Enum):
    """Prometheus's types of metrics, as far as they are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. Names end in their unit; `_total` marks counters alone."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_RPC = ("grpc_type", "grpc_service", "grpc_method")

STEP_KINDS = ("prefill", "decode", "mixed", "empty")
"""What `kind` says of a step: rows that continue what was sampled last and rows of drafts are
decode, all others are prefill; both: mixed; no rows at all: empty."""

METRICS = (
    Metric("grpc_server_started_total", _C, "Calls that began, reflection left out.", _RPC),
    Metric(
        "grpc_server_handled_total", _C,
        "Calls that ended, by status code; a token that is not known counts as UNAUTHENTICATED.",
        (*_RPC, "grpc_code"),
    ),
    Metric(
        "grpc_server_handling_seconds", _H,
        "Duration of calls; of Execute and Watch that of the whole stream.", _RPC,
    ),
    Metric("mlxrt_rejections_total", _C,
           "Calls ended and steps of a stream refused, by the reason that the client was told.",
           ("reason",)),
    Metric("mlxrt_sessions_open", _G, "Open sessions."),
    Metric("mlxrt_sessions_opened_total", _C, "Sessions opened, repeats left out."),
    Metric("mlxrt_sessions_ended_total", _C, "Sessions ended.", ("cause",)),
    Metric("mlxrt_session_takeovers_total", _C, "Sessions resumed under a new epoch."),
    Metric("mlxrt_lease_expirations_total", _C, "Sessions that ended because nobody renewed them."),
    Metric("mlxrt_sequences_resident", _G, "Registered sequences."),
    Metric("mlxrt_sequences_registered_total", _C, "Sequences registered."),
    Metric("mlxrt_sequences_poisoned_total", _C, "Sequences that failed alone.", ("reason",)),
    Metric("mlxrt_kv_blocks_capacity", _G, "Blocks that can be leased in all.", ("group",)),
    Metric("mlxrt_kv_blocks_free", _G, "Blocks that can be leased now.", ("group",)),
    Metric("mlxrt_kv_blocks_allocated", _G, "Blocks leased to sessions.", ("group",)),
    Metric("mlxrt_kv_blocks_shared", _G,
           "Leased blocks that tables name twice or more.", ("group",)),
    Metric("mlxrt_block_allocations_total", _C, "Blocks leased."),
    Metric("mlxrt_block_frees_total", _C, "Leases of blocks ended.", ("cause",)),
    Metric("mlxrt_steps_total", _C,
           "Steps ended: committed, discarded, or lost with the device.", ("kind", "outcome")),
    Metric("mlxrt_step_replays_total", _C, "Repeats answered from a stored reply."),
    Metric("mlxrt_step_failures_total", _C,
           "Accepted steps that did not commit, by reason.", ("reason",)),
    Metric("mlxrt_steps_inflight", _G, "Accepted steps without an outcome."),
    Metric("mlxrt_step_duration_seconds", _H,
           "Committed steps: queue, build, device and sample as StepTimings; total from acceptance "
           "to reply.", ("kind", "phase")),
    Metric("mlxrt_step_sequences", _H, "Sequences of a committed step.", ("kind",)),
    Metric("mlxrt_step_tokens", _H, "Rows of a committed step, a token each.", ("kind",)),
    Metric("mlxrt_prompt_tokens_total", _C,
           "Rows committed that neither continue a sample nor verify a draft."),
    Metric("mlxrt_generated_tokens_total", _C,
           "Tokens sampled and committed, accepted drafts among them."),
    Metric("mlxrt_draft_tokens_total", _C, "Drafts of committed steps.", ("outcome",)),
    Metric("mlxrt_forward_rows_total", _C,
           "Rows of forwards: asked for, or padding up to a bucket.", ("kind",)),
    Metric("mlxrt_engine_steps_total", _C,
           "Launched steps: of a forward that was replayed, or built anew.", ("forward",)),
    Metric("mlxrt_step_traces_total", _C, "Replayed steps that had to be traced first."),
    Metric("mlxrt_attention_calls_total", _C, "Attention calls of layers, by path.", ("path",)),
    Metric("mlxrt_sampled_steps_total", _C, "Steps that sampled, by sampler.", ("sampler",)),
    Metric("mlxrt_fused_layers_total", _C, "Layers that ran in fused operations."),
    Metric("mlxrt_memory_bytes", _G,
           "MLX's active, cache and peak memory; limit, kv_pool and weights as planned.",
           ("kind",)),
    Metric("mlxrt_executor_heartbeat_age_seconds", _G,
           "Since the engine's thread last showed that it is alive."),
    Metric("mlxrt_executor_queue_length", _G, "Accepted steps that wait for the engine."),
    Metric("mlxrt_ready", _G, "1 while health says SERVING, else 0."),
    Metric("mlxrt_server_state", _G, "1 for the state that the server is in.", ("state",)),
    Metric("mlxrt_model_load_seconds", _G, "From start to ready."),
    Metric("mlxrt_build_info", _G, "Always 1.",
           ("version", "mlx", "model", "device", "attention_path")),
)  # fmt: skip
"""All of them, in the order of the page. Labels never hold ids of sessions or sequences."""


def markdown() -> Iterator[str]:
    """The table's lines as README.md has them."""
    yield "| metric | type | labels | is |"
    yield "|---|---|---|---|"
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |"
