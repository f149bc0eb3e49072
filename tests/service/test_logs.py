"""What the log says: a line per step at debug, what is rare at info; as JSON and for people."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import execution_pb2, session_pb2, step_pb2

from mlxrt.telemetry.logs import configure_logs
from mlxrt.testing import FakeEngine
from mlxrt.testing.server_process import ServerProcess

PROMPT = [5, 9, 2, 77, 1023]
Launch = Callable[..., Any]
STEP_FIELDS = {
    "event", "level", "timestamp", "session_id", "step_number", "kind", "sequences", "tokens",
    "duration_seconds", "queue_us", "build_us", "device_us", "sample_us", "bucket_rows",
    "attention_path", "code",
}  # fmt: skip


class Log:
    """What this process has logged."""

    def __init__(self) -> None:
        self.written = io.StringIO()

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """The lines, each of them JSON; of one event unless it is empty."""
        found = [json.loads(line) for line in self.written.getvalue().splitlines()]
        return [line for line in found if event in ("", line["event"])]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Log]]:
    """Sets the logs of this process up, to be read; undone after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def set_up(log_format: Any, log_level: Any) -> Log:
        log = Log()
        monkeypatch.setattr("sys.stderr", log.written)
        configure_logs(log_format, log_level)
        return log

    yield set_up
    root.handlers[:] = handlers
    root.setLevel(level)
    import structlog

    structlog.reset_defaults()


def test_each_step_has_a_line_at_debug(launch: Launch, configure: Callable[..., Log]) -> None:
    log = configure("json", "debug")
    server = launch(log_level="debug")
    session = server.open()
    session.start(1, PROMPT)
    decode = session.request(decode_sequence_ids=[1])
    reply = server.call("Step", decode)
    server.call("Step", decode)  # a repeat runs nothing
    session.step(decode_sequence_ids=[1], **session.prefill_fields(2, PROMPT, session.allocate(2)))
    session.step()
    lines = log.lines("step")
    # Nothing else may be in it: neither tokens nor text.
    assert all(set(line) == STEP_FIELDS and line["level"] == "debug" for line in lines)
    said = [(line["step_number"], line["kind"], line["sequences"], line["tokens"])
            for line in lines]  # fmt: skip
    assert said == [
        (1, "prefill", 1, 5), (2, "decode", 1, 1), (3, "mixed", 2, 6), (4, "empty", 0, 0),
    ]  # fmt: skip
    assert {line["session_id"] for line in lines} == {session.ref.session_id}
    assert {line["attention_path"] for line in lines} == {"fake"}
    assert lines[1]["queue_us"] == reply.timings.queue_us
    assert lines[1]["device_us"] == reply.timings.device_us
    assert 0 < lines[1]["device_us"] <= lines[1]["duration_seconds"] * 1e6


def test_a_step_that_fails_says_why(launch: Launch, configure: Callable[..., Log]) -> None:
    log = configure("json", "debug")
    server = launch(log_level="debug")
    server.engine.faults.fail_tickets.add(1)
    server.open().step()
    (line,) = log.lines("step")
    assert (line["code"], line["reason"]) == ("INTERNAL", "EXECUTION_FAILED")


def test_a_lost_device_and_a_poisoned_sequence(
    launch: Launch, configure: Callable[..., Log]
) -> None:
    log = configure("json", "debug")
    server = launch(log_level="debug")
    server.engine.faults.nan_prompt_tokens.add(9)
    session = server.open()
    session.step(**session.prefill_fields(1, PROMPT, session.allocate(2)))
    server.engine.faults.lose_ticket = server.engine.last_ticket + 1
    session.step()
    server.exit_code.result(60)
    poisoned, lost = log.lines("step")
    assert (poisoned["code"], poisoned["failed_sequences"]) == ("OK", 1)
    assert (lost["code"], lost["reason"]) == ("INTERNAL", "DEVICE_LOST")
    assert log.lines("lost")[0]["level"] == "error"


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("via", ["call", "stream", "step of a stream"])
@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE), ("", None), ("00", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None), (f"00-{TRACE[:-1]}g-00-01", None),
    ],
)  # fmt: skip
def test_the_callers_trace_is_in_the_line(
    launch: Launch, configure: Callable[..., Log], via: str, sent: str, logged: str | None
) -> None:
    log = configure("json", "debug")
    server = launch(log_level="debug")
    session = server.open()
    metadata = (("traceparent", sent),) if sent and via != "step of a stream" else ()
    if via == "call":
        server.call("Step", session.request(), metadata=metadata)
    else:
        request = execution_pb2.ExecuteRequest(step=session.request())
        if via == "step of a stream":
            request.traceparent = sent
        run = server.channel.stream_stream("/mlxrt.v1.ExecutionService/Execute")
        next(run(iter([request.SerializeToString()]), timeout=60, metadata=metadata))
    (line,) = log.lines("step")
    assert line.get("trace_id") == logged


def test_at_info_steps_have_no_line(launch: Launch, configure: Callable[..., Log]) -> None:
    log = configure("json", "info")
    server = launch()
    server.open().start(1, PROMPT)
    assert not log.lines("step") and log.lines("session open")
    observers = server.on_loop(lambda: len(server.server.runtime.dispatcher.observers))
    assert observers == 1  # nothing is even built


def test_what_is_rare_has_a_line_at_info(launch: Launch, configure: Callable[..., Log]) -> None:
    log = configure("json", "info")
    server = launch(drain_seconds=0.05)
    ending = server.open()
    ending.allocate(3)
    ending.end_lease()
    closing, resumed, drained = server.open(), server.open(), server.open()
    server.call("CloseSession", session_pb2.CloseSessionRequest(session=closing.ref))
    server.call(
        "ResumeSession", session_pb2.ResumeSessionRequest(request_id="t", session=resumed.ref)
    )
    drained.start(1, PROMPT)
    while not log.lines("lease expired"):
        server.on_loop(lambda: None)
    server.on_loop(server.server.drain)
    server.exit_code.result(60)
    expected = {
        "listening": {"address", "tls", "metrics"}, "loading": {"percent", "activity"},
        "serving": {"model", "device", "attention_path", "load_seconds"},
        "session open": {"session_id", "client_name", "lease_ttl_ms"},
        "session closed": {"session_id"}, "session resumed": {"session_id", "epoch"},
        "lease expired": {"session_id", "freed_blocks", "released_sequences"},
        "draining": {"limit_s", "sessions"},
        "session closed by the drain": {"session_id", "freed_blocks"}, "stopped": {"exit_code"},
    }  # fmt: skip
    for event, fields in expected.items():
        found = log.lines(event)
        assert found, event
        assert fields <= set(found[0]), event
        assert found[0]["level"] == ("warning" if event == "lease expired" else "info"), event
    assert log.lines("lease expired")[0]["freed_blocks"] == 3
    closed = log.lines("session closed by the drain")
    assert drained.ref.session_id in {line["session_id"] for line in closed}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_both_forms_of_a_process(log_format: str) -> None:
    arguments = ["--fake", "--log-level", "debug", "--set", f"log_format={log_format}"]
    with ServerProcess(arguments) as server:
        with grpc.insecure_channel(server.address) as channel:
            run = channel.unary_unary("/mlxrt.v1.SessionService/OpenSession")
            answer = run(session_pb2.OpenSessionRequest(request_id="r").SerializeToString())
            session = session_pb2.OpenSessionResponse.FromString(answer).session
            run = channel.unary_unary("/mlxrt.v1.ExecutionService/Step")
            run(step_pb2.StepRequest(session=session, step_number=1).SerializeToString())
        assert server.stop(signal.SIGTERM) == 0
        lines = server.log.splitlines()
    if log_format == "json":
        said = [json.loads(line) for line in lines]
        assert all({"event", "level", "timestamp"} <= set(line) for line in said)
        assert [line["step_number"] for line in said if line["event"] == "step"] == [1]
        return
    steps = [line for line in lines if "step_number=1" in line]
    (line,) = steps
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[debug +\] step ", line), line
    assert "kind=empty" in line and "code=OK" in line


def test_an_observer_that_raises_is_left_out(launch: Launch, configure: Callable[..., Log]) -> None:
    log = configure("json", "debug")
    server = launch(log_level="debug", engine=FakeEngine(num_blocks=64, block_size=4))

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    observers = server.server.runtime.dispatcher.observers
    server.on_loop(lambda: observers.insert(0, broken))
    session = server.open()
    assert session.start(1, PROMPT) == server.engine.expected_token(PROMPT)
    session.step(decode_sequence_ids=[1])
    assert len(log.lines("internal defect")) == 1 and len(log.lines("step")) == 2
