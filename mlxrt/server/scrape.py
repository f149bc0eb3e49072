"""Reads everything that the metrics' table names, at a scrape, on the scraper's own thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import structlog
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from mlxrt.core.answers import Census
from mlxrt.core.core import Core
from mlxrt.engine.base import Engine, EngineDescription
from mlxrt.engine.counters import EngineCounters
from mlxrt.server.lifecycle import Lifecycle, ServerState
from mlxrt.server.runtime import Runtime
from mlxrt.telemetry.metrics import METRICS, Metric, MetricKind
from mlxrt.telemetry.tallies import PHASES, Histogram, Tallies
from mlxrt.versions import own_version

CENSUS_WAIT_S = 2.0
"""Longest wait for the event loop; without its answer the page lacks the core's gauges."""
_FREES = {
    "free_blocks": "client", "free_sequences": "client", "close": "session_closed",
    "expiry": "lease_expired", "drain": "drain",
}  # fmt: skip
"""Label by the core's cause."""
_log = structlog.get_logger("mlxrt.server")


@runtime_checkable
class HasCounters(Protocol):
    """An engine that counts what it does; any thread may ask."""

    def counters(self) -> EngineCounters:
        """What was done since the engine was ready."""

    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes by kind, as `mlxrt_memory_bytes` names them; empty before the engine is ready."""


@dataclass(slots=True)
class Observed:
    """What a scrape looks at; the server keeps it up to date.

    Attributes:
        runtime, description, load_s: None until the model is loaded; the latter in seconds.
    """

    engine: Engine
    lifecycle: Lifecycle
    tallies: Tallies
    runtime: Runtime | None = None
    description: EngineDescription | None = None
    load_s: float | None = None


class _Page:
    """The families of the table, to be filled."""

    def __init__(self) -> None:
        self.families: dict[str, Any] = {metric.name: _family(metric) for metric in METRICS}

    def set(self, name: str, value: float, *labels: str) -> None:
        """Adds a sample of a counter or gauge."""
        self.families[name].add_metric(labels, value)

    def histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """Adds a histogram."""
        self.families[name].add_metric(labels, histogram.cumulative(), histogram.total)


class Scrape(Collector):
    """A collector of prometheus_client over what a server does.

    Args:
        loop: the event loop that the core lives on.
    """

    def __init__(self, observed: Observed, loop: asyncio.AbstractEventLoop) -> None:
        self._observed = observed
        self._loop = loop

    def describe(self) -> Iterator[Family]:
        """As Collector: registering asks nothing of the server."""
        return iter(_Page().families.values())

    def collect(self) -> Iterator[Family]:
        """As Collector."""
        page, seen = _Page(), self._observed
        _calls(page, seen.tallies)
        _steps(page, seen.tallies)
        _state(page, seen)
        if isinstance(seen.engine, HasCounters):
            _engine(page, seen.engine)
        if seen.runtime is not None:
            _counters(page, seen.runtime.core)
            census = self._census(seen.runtime.core.census)
            if census is not None:
                _census(page, census, [g.block_count - 1 for g in seen.runtime.facts.groups])
        yield from page.families.values()

    def _census(self, take: Callable[[], Census]) -> Census | None:
        """Taken on the core's own thread; None where that does not answer."""

        answer: Future[Census] = Future()

        def on_loop() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(take())

        try:
            self._loop.call_soon_threadsafe(on_loop)
            return answer.result(CENSUS_WAIT_S)
        except (TimeoutError, RuntimeError) as error:  # it hangs, or has ended
            answer.cancel()
            _log.warning("a scrape without the core's gauges", error=type(error).__name__)
            return None


def _family(metric: Metric) -> Family:
    kinds: dict[MetricKind, Callable[..., Family]] = {
        MetricKind.COUNTER: CounterMetricFamily,
        MetricKind.GAUGE: GaugeMetricFamily,
        MetricKind.HISTOGRAM: HistogramMetricFamily,
    }
    return kinds[metric.kind](metric.name, metric.help, labels=metric.labels)


def _calls(page: _Page, tallies: Tallies) -> None:
    for labels, calls in tuple(tallies.calls.items()):
        page.set("grpc_server_started_total", calls.started, *labels)
        for code, count in tuple(calls.ended.items()):
            page.set("grpc_server_handled_total", count, *labels, code)
        page.histogram("grpc_server_handling_seconds", calls.seconds, *labels)
    for reason, count in tuple(tallies.rejections.items()):
        page.set("mlxrt_rejections_total", count, reason.name)


def _steps(page: _Page, tallies: Tallies) -> None:
    for kind, steps in tallies.steps.items():
        for outcome in ("committed", "discarded", "lost"):
            page.set("mlxrt_steps_total", getattr(steps, outcome), kind, outcome)
        for phase, histogram in zip(PHASES, steps.phases, strict=True):
            page.histogram("mlxrt_step_duration_seconds", histogram, kind, phase)
        page.histogram("mlxrt_step_sequences", steps.sequences, kind)
        page.histogram("mlxrt_step_tokens", steps.rows, kind)
    for reason, count in tuple(tallies.step_failures.items()):
        page.set("mlxrt_step_failures_total", count, reason.name)
    page.set("mlxrt_draft_tokens_total", tallies.drafts_accepted, "accepted")
    page.set("mlxrt_draft_tokens_total", tallies.drafts_rejected, "rejected")
    page.set("mlxrt_prompt_tokens_total", tallies.prompt_tokens)
    page.set("mlxrt_generated_tokens_total", tallies.generated_tokens)


def _state(page: _Page, seen: Observed) -> None:
    for state in ServerState:
        is_now = seen.lifecycle.state is state
        page.set("mlxrt_server_state", int(is_now), state.name.lower())
    page.set("mlxrt_ready", int(seen.lifecycle.ready))
    page.set("mlxrt_executor_heartbeat_age_seconds", seen.engine.heartbeat_age_s())
    if seen.load_s is not None:
        page.set("mlxrt_model_load_seconds", seen.load_s)
    if seen.description is not None and seen.runtime is not None:
        page.set(
            "mlxrt_build_info", 1, own_version(), seen.description.mlx_version,
            seen.runtime.facts.model_name, seen.description.device,
            seen.description.attention_path,
        )  # fmt: skip


def _engine(page: _Page, engine: HasCounters) -> None:
    counts = engine.counters()
    page.set("mlxrt_forward_rows_total", counts.rows, "asked")
    page.set("mlxrt_forward_rows_total", counts.padding_rows, "padding")
    page.set("mlxrt_engine_steps_total", counts.compiled_steps, "replayed")
    page.set("mlxrt_engine_steps_total", counts.steps - counts.compiled_steps, "built")
    page.set("mlxrt_step_traces_total", counts.traces)
    page.set("mlxrt_attention_calls_total", counts.attend_native, "native")
    page.set("mlxrt_attention_calls_total", counts.attend_gather, "gather")
    page.set("mlxrt_sampled_steps_total", counts.sample_native, "native")
    page.set("mlxrt_sampled_steps_total", counts.sample_plain, "plain")
    page.set("mlxrt_fused_layers_total", counts.fused_layers)
    for kind, size in engine.memory_bytes().items():
        page.set("mlxrt_memory_bytes", size, kind)


def _counters(page: _Page, core: Core) -> None:
    counters = core.counters
    page.set("mlxrt_sessions_opened_total", counters.sessions_opened)
    page.set("mlxrt_sessions_ended_total", counters.sessions_closed, "client")
    page.set("mlxrt_sessions_ended_total", counters.sessions_expired, "lease_expired")
    page.set("mlxrt_sessions_ended_total", counters.sessions_drained, "drain")
    page.set("mlxrt_session_takeovers_total", counters.sessions_resumed)
    page.set("mlxrt_lease_expirations_total", counters.sessions_expired)
    page.set("mlxrt_sequences_registered_total", counters.sequences_registered)
    page.set("mlxrt_block_allocations_total", counters.blocks_allocated)
    page.set("mlxrt_step_replays_total", counters.steps_replayed)
    for reason, count in tuple(counters.sequences_failed.items()):
        page.set("mlxrt_sequences_poisoned_total", count, reason.name)
    frees = dict.fromkeys(_FREES.values(), 0)
    for cause, count in counters.blocks_freed.items():
        frees[_FREES[cause]] += count
    for label, count in frees.items():
        page.set("mlxrt_block_frees_total", count, label)


def _census(page: _Page, census: Census, capacities: list[int]) -> None:
    page.set("mlxrt_sessions_open", census.sessions)
    page.set("mlxrt_sequences_resident", census.sequences)
    page.set("mlxrt_steps_inflight", census.inflight_steps)
    page.set("mlxrt_executor_queue_length", census.queued_steps)
    by_group = {
        "capacity": capacities, "free": census.free_blocks,
        "allocated": census.leased_blocks, "shared": census.shared_blocks,
    }  # fmt: skip
    for name, counts in by_group.items():
        for group, count in enumerate(counts):
            page.set(f"mlxrt_kv_blocks_{name}", count, str(group))
