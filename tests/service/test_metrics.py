"""Each metric of the table is moved over the wire; and the port that they are read from."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlxrt_client import Client, messages
from mlxrt_client.v1 import StepRequest, model_pb2, session_pb2
from prometheus_client.parser import text_string_to_metric_families

from mlxrt.telemetry.metrics import METRICS, MetricKind, markdown
from mlxrt.testing import FakeEngine
from mlxrt.testing.server_process import ServerProcess

PROMPT = [5, 9, 2, 77, 1023]
EXECUTION = "mlxrt.v1.ExecutionService"
ROOT = Path(__file__).parents[2]
Launch = Callable[..., Any]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the event loop, every page has the core's gauges."""
    monkeypatch.setattr("mlxrt.server.scrape.CENSUS_WAIT_S", 60)


class Page:
    """A server's metrics as Prometheus reads them.

    Attributes:
        moved: names of the metrics that were seen to move.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.moved: set[str] = set()

    def text(self) -> str:
        """One scrape."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=60) as answer:
            return answer.read().decode()

    def value(self, sample: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 where there is none."""
        families = text_string_to_metric_families(self.text())
        return sum(
            found.value
            for family in families
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def expect(self, metric: str, value: float, **labels: str) -> None:
        """Waits until the gauge has this value."""
        end_s = time.monotonic() + 60
        while (found := self.value(metric, **labels)) != value:
            assert time.monotonic() < end_s, f"{metric} is {found}, not {value}"
            time.sleep(0.01)
        self.moved.add(metric)

    @contextmanager
    def moves(self, metric: str, by: float, part: str = "", **labels: str) -> Iterator[None]:
        """What is done within raises the sample by so much."""
        before = self.value(metric + part, **labels)
        yield
        end_s = time.monotonic() + 60
        while (moved := self.value(metric + part, **labels) - before) != by:
            assert time.monotonic() < end_s, f"{metric}{part} moved by {moved}, not {by}"
            time.sleep(0.01)
        self.moved.add(metric)


Scenario = Callable[[Launch], Page]
SCENARIOS: dict[str, Scenario] = {}
PAGES: dict[Scenario, Page] = {}
"""Of the scenarios that have run."""


def moves(*metrics: str) -> Callable[[Scenario], Scenario]:
    """Enters the function as the one that moves these metrics."""

    def enter(function: Scenario) -> Scenario:
        for metric in metrics:
            assert metric not in SCENARIOS, metric
            SCENARIOS[metric] = function
        return function

    return enter


def start(launch: Launch, engine: FakeEngine | None = None, **settings: Any) -> tuple[Any, Page]:
    """A server with a port for its metrics, and that port."""
    server = launch(engine, metrics_address="127.0.0.1:0", **settings)
    return server, Page(server.server.metrics_address)


def send_steps(server: Any, session: Any, count: int) -> list[Any]:
    """Sends empty steps without waiting; answers the calls."""
    run = server.channel.unary_unary(f"/{EXECUTION}/Step")
    calls = []
    for _ in range(count):
        calls.append(run.future(session.request().SerializeToString(), timeout=60))
        session.wait_for_inflight(len(calls))
    return calls


@moves("grpc_server_started_total", "grpc_server_handled_total", "grpc_server_handling_seconds")
def calls(launch: Launch) -> Page:
    server, page = start(launch)
    unary = {"grpc_service": EXECUTION, "grpc_method": "Step", "grpc_type": "unary"}
    stream = {**unary, "grpc_method": "Execute", "grpc_type": "bidi_stream"}
    session = server.open()
    handled, seconds = "grpc_server_handled_total", "grpc_server_handling_seconds"
    with page.moves("grpc_server_started_total", 2, **unary), page.moves(
        handled, 1, grpc_code="OK", **unary
    ), page.moves(handled, 1, grpc_code="NOT_FOUND", **unary), page.moves(
        seconds, 2, "_count", **unary
    ):  # fmt: skip
        session.step()
        server.refused("Step", session.request(decode_sequence_ids=[9]))
    with page.moves(handled, 1, grpc_code="OK", **stream):
        with page.moves("grpc_server_started_total", 1, **stream):
            call = server.stream()
            call.send(session.request(step_number=2))
            call.receive()
        call.finish()
    return page


@moves("mlxrt_rejections_total")
def rejections(launch: Launch) -> Page:
    server, page = start(launch)
    session = server.open()
    with page.moves("mlxrt_rejections_total", 1, reason="STEP_GAP"):
        server.refused("Step", session.request(step_number=9))
    with page.moves("mlxrt_rejections_total", 1, reason="SEQUENCE_UNKNOWN"):
        stream = server.stream()
        stream.send(session.request(decode_sequence_ids=[9]))
        assert stream.receive().HasField("error")
    return page


@moves("mlxrt_sessions_open", "mlxrt_sessions_opened_total", "mlxrt_sessions_ended_total")
def sessions(launch: Launch) -> Page:
    server, page = start(launch)
    with page.moves("mlxrt_sessions_opened_total", 2):
        ref = [server.open(), server.open()][0].ref
    page.expect("mlxrt_sessions_open", 2)
    with page.moves("mlxrt_sessions_ended_total", 1, cause="client"):
        server.call("CloseSession", session_pb2.CloseSessionRequest(session=ref))
    page.expect("mlxrt_sessions_open", 1)
    return page


@moves("mlxrt_lease_expirations_total")
def expirations(launch: Launch) -> Page:
    server, page = start(launch)
    session, frees = server.open(), "mlxrt_block_frees_total"
    session.allocate(3)
    with page.moves("mlxrt_lease_expirations_total", 1), page.moves(
        "mlxrt_sessions_ended_total", 1, cause="lease_expired"
    ), page.moves(frees, 3, cause="lease_expired"):  # fmt: skip
        session.end_lease()
    return page


@moves("mlxrt_session_takeovers_total")
def takeovers(launch: Launch) -> Page:
    server, page = start(launch)
    request = session_pb2.ResumeSessionRequest(request_id="t", session=server.open().ref)
    with page.moves("mlxrt_session_takeovers_total", 1):
        server.call("ResumeSession", request)
    return page


@moves("mlxrt_sequences_resident", "mlxrt_sequences_registered_total")
def sequences(launch: Launch) -> Page:
    server, page = start(launch)
    session = server.open()
    with page.moves("mlxrt_sequences_registered_total", 1):
        session.start(1, PROMPT)
    page.expect("mlxrt_sequences_resident", 1)
    session.step(release_sequence_ids=[1])
    page.expect("mlxrt_sequences_resident", 0)
    return page


@moves("mlxrt_sequences_poisoned_total")
def poisoned(launch: Launch) -> Page:
    server, page = start(launch)
    server.engine.faults.nan_prompt_tokens.add(9)
    session = server.open()
    with page.moves("mlxrt_sequences_poisoned_total", 1, reason="NON_FINITE_LOGITS"):
        session.step(**session.prefill_fields(1, PROMPT, session.allocate(2)))
        session.step(decode_sequence_ids=[1])  # it has failed already
    return page


@moves(
    "mlxrt_kv_blocks_capacity", "mlxrt_kv_blocks_free", "mlxrt_kv_blocks_allocated",
    "mlxrt_kv_blocks_shared", "mlxrt_block_allocations_total", "mlxrt_block_frees_total",
)  # fmt: skip
def blocks(launch: Launch) -> Page:
    engine = FakeEngine(num_blocks=64, block_size=4, windows=(0, 8))
    server, page = start(launch, engine)
    page.expect("mlxrt_kv_blocks_capacity", 63, group="0")
    page.expect("mlxrt_kv_blocks_capacity", 63, group="1")
    session = server.open()
    with page.moves("mlxrt_block_allocations_total", 10):
        full, windowed = session.allocate(6), session.allocate(4, group=1)
    page.expect("mlxrt_kv_blocks_allocated", 6, group="0")
    page.expect("mlxrt_kv_blocks_free", 59, group="1")
    tables = [[{"group": 0, "block_ids": full[:2]}, {"group": 1, "block_ids": windowed[:2]}]] * 2
    fields = [{"sequence_id": n, "prompt_token_ids": PROMPT} for n in (1, 2)]
    session.step(new_sequences=[{**f, "tables": t} for f, t in zip(fields, tables, strict=True)])
    page.expect("mlxrt_kv_blocks_shared", 2, group="0")
    session.step(release_sequence_ids=[1])
    page.expect("mlxrt_kv_blocks_shared", 0, group="1")
    with page.moves("mlxrt_block_frees_total", 4, cause="client"):
        server.call("FreeBlocks", free_request(session, full[2:]))
    with page.moves("mlxrt_block_frees_total", 6, cause="session_closed"):
        server.call("CloseSession", session_pb2.CloseSessionRequest(session=session.ref))
    page.expect("mlxrt_kv_blocks_allocated", 0)
    return page


def free_request(session: Any, block_ids: list[int]) -> Any:
    from mlxrt_client.v1 import execution_pb2

    return execution_pb2.FreeBlocksRequest(
        session=session.ref, request_id="f", blocks=[{"group": 0, "block_ids": block_ids}]
    )


@moves(
    "mlxrt_steps_total", "mlxrt_step_duration_seconds", "mlxrt_step_sequences",
    "mlxrt_step_tokens", "mlxrt_prompt_tokens_total", "mlxrt_generated_tokens_total",
    "mlxrt_step_replays_total",
)  # fmt: skip
def steps(launch: Launch) -> Page:
    server, page = start(launch)
    session = server.open()
    session.start(1, PROMPT)
    generated, prompts = "mlxrt_generated_tokens_total", "mlxrt_prompt_tokens_total"
    done = {"kind": "decode", "outcome": "committed"}
    duration = "mlxrt_step_duration_seconds"
    with page.moves("mlxrt_steps_total", 1, **done), page.moves(generated, 1), page.moves(
        "mlxrt_step_sequences", 1, "_sum", kind="decode"
    ), page.moves(duration, 5, "_count", kind="decode"), page.moves(prompts, 0):  # fmt: skip
        session.step(decode_sequence_ids=[1])
    mixed = session.prefill_fields(2, PROMPT, session.allocate(2))
    with page.moves("mlxrt_steps_total", 1, kind="mixed"), page.moves(generated, 2), page.moves(
        "mlxrt_step_tokens", 6, "_sum", kind="mixed"
    ), page.moves(prompts, 5):  # fmt: skip
        session.step(decode_sequence_ids=[1], **mixed)
    with page.moves("mlxrt_steps_total", 1, kind="empty"):
        request = session.request()
        server.call("Step", request)
    with page.moves("mlxrt_step_replays_total", 1), page.moves("mlxrt_steps_total", 0):
        server.call("Step", request)
    committed = server.on_loop(lambda: server.core.counters.steps_committed)
    assert page.value("mlxrt_steps_total", outcome="committed") == committed == 4
    return page


@moves("mlxrt_draft_tokens_total")
def drafts(launch: Launch) -> Page:
    server, page = start(launch)
    session = server.open()
    tokens = [*PROMPT, session.start(1, PROMPT)]
    right = server.engine.expected_token(tokens)
    wrong = (server.engine.expected_token([*tokens, right]) + 1) % 4096
    item = {"sequence_id": 1, "row_count": 1, "last_sampled": {}, "sample": True}
    drafting = {**item, "draft_token_ids": [right, wrong]}
    name = "mlxrt_draft_tokens_total"
    with (
        page.moves(name, 1, outcome="accepted"),
        page.moves(name, 1, outcome="rejected"),
        page.moves("mlxrt_generated_tokens_total", 2),
        page.moves("mlxrt_step_tokens", 3, "_sum", kind="decode"),
    ):
        session.step(items=[drafting])
    return page


@moves("mlxrt_step_failures_total")
def failures(launch: Launch) -> Page:
    server, page = start(launch)
    server.engine.faults.fail_tickets.add(1)
    session = server.open()
    with page.moves("mlxrt_step_failures_total", 1, reason="EXECUTION_FAILED"), page.moves(
        "mlxrt_steps_total", 1, kind="empty", outcome="discarded"
    ):  # fmt: skip
        session.step()
    server.engine.faults.fail_tickets.clear()
    return page


@moves(
    "mlxrt_steps_inflight", "mlxrt_executor_queue_length", "mlxrt_executor_heartbeat_age_seconds",
    "mlxrt_ready",
)  # fmt: skip
def executor(launch: Launch) -> Page:
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True)
    server, page = start(launch, engine, stall_seconds=0.2, limits={"max_inflight_steps": 4})
    session = server.open()
    page.expect("mlxrt_ready", 1)
    page.expect("mlxrt_executor_heartbeat_age_seconds", 0)
    goes_on, run = threading.Event(), engine._runner.run
    engine._runner.run = lambda *plan: run(*plan) if goes_on.wait(60) else None
    running = send_steps(server, session, 3)
    page.expect("mlxrt_steps_inflight", 3)
    page.expect("mlxrt_executor_queue_length", 1)  # two are the engine's
    page.expect("mlxrt_ready", 0)
    assert page.value("mlxrt_executor_heartbeat_age_seconds") > 0.2
    goes_on.set()
    for call in running:
        call.result()
    page.expect("mlxrt_steps_inflight", 0)
    page.expect("mlxrt_ready", 1)
    return page


@moves("mlxrt_server_state", "mlxrt_model_load_seconds", "mlxrt_build_info")
def state(launch: Launch) -> Page:
    gate = threading.Event()
    engine = FakeEngine(num_blocks=64, block_size=4, threaded=True, load_gate=gate)
    server, page = start(launch, engine)
    page.expect("mlxrt_server_state", 1, state="loading")
    assert page.value("mlxrt_model_load_seconds") == page.value("mlxrt_build_info") == 0
    time.sleep(0.05)
    gate.set()
    page.expect("mlxrt_server_state", 1, state="serving")
    info = server.call("GetServerInfo", model_pb2.GetServerInfoRequest())
    page.expect("mlxrt_build_info", 1, version=info.version, model="fake", device="fake")
    assert 0.05 < page.value("mlxrt_model_load_seconds") < 60
    page.moved.add("mlxrt_model_load_seconds")
    session = server.open()
    session.start(1, PROMPT)
    server.on_loop(server.server.drain)
    page.expect("mlxrt_server_state", 1, state="draining")
    page.expect("mlxrt_ready", 0)
    return page


@moves(
    "mlxrt_forward_rows_total", "mlxrt_attention_calls_total", "mlxrt_memory_bytes",
    "mlxrt_engine_steps_total", "mlxrt_step_traces_total",
    "mlxrt_sampled_steps_total", "mlxrt_fused_layers_total",
)  # fmt: skip
def real_engine(launch: Launch) -> Page:
    with ServerProcess(
        ["--num-blocks", "64", "--set", "metrics_address=127.0.0.1:0", "--set", "compiled=on"]
    ) as server, Client(server.address) as client, client.open_session() as session:  # fmt: skip
        said = [json.loads(line) for line in server.log.splitlines()]
        (listening,) = [line for line in said if line["event"] == "listening"]
        page = Page(listening["metrics"])
        layers = sum(len(g.layer_indices) for g in client.model_info().groups)
        blocks = session.allocate_blocks({0: 3})[0]
        prefill = StepRequest(
            new_sequences=[
                messages.new_sequence(1 + index, [1 + index], {0: [block]})
                for index, block in enumerate(blocks)
            ],
            items=[messages.chunk_item(1 + i, row_count=1, sample=True) for i in range(3)],
        )
        with page.moves("mlxrt_forward_rows_total", 3, kind="asked"), page.moves(
            "mlxrt_attention_calls_total", layers, path="native"
        ), page.moves("mlxrt_step_traces_total", 1):  # three rows: new after the warm-up
            session.step(prefill)
        with page.moves("mlxrt_engine_steps_total", 2, forward="replayed"), page.moves(
            "mlxrt_sampled_steps_total", 2, sampler="native"
        ), page.moves("mlxrt_fused_layers_total", 2 * layers):  # fmt: skip
            for _ in range(2):
                session.step(StepRequest(decode_sequence_ids=[1, 2, 3]))
        for kind in ("active", "cache", "peak", "limit", "kv_pool", "weights"):
            assert page.value("mlxrt_memory_bytes", kind=kind) > 0, kind
        pool = page.value("mlxrt_memory_bytes", kind="kv_pool")
        assert pool == 64 * client.model_info().groups[0].block_bytes
        assert page.value("mlxrt_memory_bytes", kind="active") > pool
        page.moved.add("mlxrt_memory_bytes")
    return page


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_metric_moves(launch: Launch, metric: Any) -> None:
    assert metric.name in SCENARIOS, "a metric of the table without a case"
    scenario = SCENARIOS[metric.name]
    if scenario not in PAGES:
        PAGES[scenario] = scenario(launch)
    assert metric.name in PAGES[scenario].moved


def test_no_case_is_of_a_metric_that_is_gone() -> None:
    assert set(SCENARIOS) == {metric.name for metric in METRICS}


def test_the_page_is_the_table(launch: Launch) -> None:
    server, page = start(launch)
    server.open().start(1, PROMPT)
    found = {
        family.name: family
        for family in text_string_to_metric_families(page.text())
        if not family.name.startswith("process_")
    }
    table = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    assert set(found) == set(table)
    for name, metric in table.items():
        family = found[name]
        assert (family.type, family.documentation) == (metric.kind.value, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), name


def test_names_are_as_prometheus_asks_for() -> None:
    for metric in METRICS:
        assert metric.name.startswith(("mlxrt_", "grpc_server_")) and ":" not in metric.name
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric.name
        assert not {"session", "session_id", "sequence", "sequence_id"} & set(metric.labels)


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "mlxrt" / "telemetry" / "README.md").read_text()
    table = readme.split("<!-- metrics -->\n")[1].split("<!-- /metrics -->")[0]
    assert table == "".join(f"{line}\n" for line in markdown())
