"""Plays cases through mlxrt_client: its Session, its stream and its Scheduler.

The library numbers steps, makes request ids and renews leases itself, so a case that says these
things its own way (a repeat, a gap, a lease that ends) does not apply: `fits_library` tells.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from google.protobuf.json_format import ParseDict
from matching import Captures, Mismatch
from mlxrt_client import Client, MlxrtError, Scheduler
from mlxrt_client.session import Session
from mlxrt_client.stream import ExecuteStream
from mlxrt_client.v1 import DecodeRequest, PrefillRequest, StepRequest
from stubs import Failed, match_failure, to_json

STEPS = ("ExecutionService.Step", "ExecutionService.Prefill", "ExecutionService.Decode")
ANSWER_TIMEOUT_S = 60.0
_REQUEST_IDS = ("OpenSession", "AllocateBlocks", "FreeBlocks", "FreeSequences")
_CALLS = {f"ExecutionService.{name}" for name in _REQUEST_IDS[1:]} | {
    *STEPS, "SessionService.OpenSession", "SessionService.GetSession",
    "SessionService.CloseSession",
}  # fmt: skip


def fits_library(case: dict[str, Any]) -> bool:
    """Whether the library can say what the case's exchanges say."""
    next_numbers: dict[str, int] = {}
    request_ids: set[str] = set()
    for exchange in case["exchanges"]:
        if "stream" in exchange:
            fits = _stream_fits(exchange, next_numbers)
        else:
            fits = exchange.get("call") in _CALLS and _call_fits(
                exchange, next_numbers, request_ids
            )
        if not fits:
            return False
    return True


def _stream_fits(exchange: dict[str, Any], next_numbers: dict[str, int]) -> bool:
    if "send" in exchange:
        step = exchange["send"].get("step")
        return step is not None and _is_next(step, next_numbers, accepted=True)
    if "receive" in exchange:
        step = exchange["receive"].get("step", {"error": {}})
        return step.get("error") is None and not step.get("replayed")
    return "half_close" in exchange or exchange.get("end") == {"status": 0}


def _call_fits(
    exchange: dict[str, Any], next_numbers: dict[str, int], request_ids: set[str]
) -> bool:
    rpc, request = exchange["call"], exchange.get("request", {})
    if {"bytes_hex", "fill_bytes", "within_ms", "status"} & set(exchange):
        return False
    if rpc.endswith(_REQUEST_IDS):
        request_id = request.get("request_id")
        if not request_id or request_id in request_ids or "{run}" not in request_id:
            return False
        request_ids.add(request_id)
        counts = [count.get("group", 0) for count in request.get("counts", ())]
        return len(set(counts)) == len(counts)
    if not re.fullmatch(r"\$\w+", str(request.get("session", ""))):
        return False
    if rpc in STEPS:
        if exchange.get("response", {}).get("replayed"):
            return False
        return _is_next(request, next_numbers, accepted="response" in exchange)
    # The library's close answers nothing and is content where the session is gone.
    return not rpc.endswith("CloseSession") or not exchange.get("response", {"": ""})


def _is_next(step: dict[str, Any], next_numbers: dict[str, int], *, accepted: bool) -> bool:
    number = next_numbers.setdefault(step["session"], 1)
    next_numbers[step["session"]] += accepted
    return bool(step["step_number"] == number)


def error_json(error: MlxrtError) -> dict[str, Any]:
    """Returns the library's exception as the mlxrt.v1.Error that it came from."""
    found: dict[str, Any] = {
        "code": error.code,
        "reason": f"ERROR_REASON_{error.reason}",
        "metadata": dict(error.metadata),
        "field_violations": [{"field": p.field} for p in error.problems],
    }
    if error.retry_delay_s is not None:
        found["retry_delay"] = f"{error.retry_delay_s}s"
    return found


class LibraryPlayer:
    """Plays the exchanges of one case that fits."""

    def __init__(self, address: str, captures: Captures) -> None:
        """`address` of the server."""
        self._client = Client(address)
        self._captures = captures
        self._sessions: dict[str, Session] = {}
        self._streams: dict[str, ExecuteStream] = {}
        self._answers: dict[str, deque[Future[Any]]] = {}

    def play(self, exchange: dict[str, Any]) -> None:
        """Plays one exchange.

        Raises:
            Mismatch: it went otherwise than the case says.
        """
        if "stream" in exchange:
            self._stream(exchange)
            return
        request = self._captures.fill(exchange.get("request", {}))
        try:
            answer = self._call(exchange["call"].split(".")[1], request)
        except MlxrtError as error:
            failure = Failed(error.code, error_json(error), error.message)
            match_failure(self._captures, exchange, failure)
            return
        if "response" not in exchange:
            raise Mismatch(f"answered where it had to fail: {answer}")
        self._captures.match(exchange["response"], answer, "response")

    def finish(self) -> None:
        """Closes streams, sessions and channel."""
        for stream in self._streams.values():
            stream.cancel()
        for session in self._sessions.values():
            session.close()
        self._client.close()

    def _call(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        if name == "OpenSession":
            session = self._client.open_session(
                lease_ttl_ms=request.get("lease_ttl_ms", 0),
                client_name=request.get("client_name", ""),
            )
            self._sessions[session.ref.session_id] = session
            return {"session": to_json(session.ref), "lease_ttl_ms": session.lease_ttl_ms}
        session = self._sessions[request["session"]["session_id"]]
        if f"ExecutionService.{name}" in STEPS:
            return self._step(session, name, request)
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "AllocateBlocks": lambda: {"blocks": _tables(session.allocate_blocks(
                {c.get("group", 0): c["count"] for c in request["counts"]}
            ))},
            "FreeBlocks": lambda: {"free_blocks": [
                {"group": group, "count": count}
                for group, count in session.free_blocks(_by_group(request["blocks"])).items()
            ]},
            "FreeSequences": lambda: {"freed_blocks": _tables(session.free_sequences(
                request["sequence_ids"], and_blocks=request.get("free_blocks", False)
            ))},
            "GetSession": lambda: to_json(session.state(
                tables=request.get("include_tables", False),
                tokens=request.get("include_tokens", False),
                sequence_ids=request.get("sequence_ids", ()),
            )),
        }  # fmt: skip
        if name == "CloseSession":
            session.close()
            return {}
        return answers[name]()

    def _step(self, session: Session, name: str, request: dict[str, Any]) -> dict[str, Any]:
        number = request.pop("step_number")
        if session.next_step_number != number:
            raise Mismatch(f"the library's next step is {session.next_step_number}, not {number}")
        del request["session"]
        if name == "Step":
            return to_json(session.step(ParseDict(request, StepRequest())))
        if name == "Prefill":
            chunks = ParseDict(request, PrefillRequest()).chunks
            return {"step": to_json(session.prefill(list(chunks)))}
        message = ParseDict(request, DecodeRequest())
        appended = {
            entry.sequence_id: {table.group: list(table.block_ids) for table in entry.append}
            for entry in message.appended
        }
        return {"step": to_json(session.decode(list(message.sequence_ids), appended))}

    def _stream(self, exchange: dict[str, Any]) -> None:
        name = exchange["stream"]
        answers = self._answers.setdefault(name, deque())
        if "send" in exchange:
            request = self._captures.fill(exchange["send"]["step"])
            session = self._sessions[request.pop("session")["session_id"]]
            del request["step_number"]
            if name not in self._streams:
                self._streams[name] = session.stream()
            answers.append(self._streams[name].submit(ParseDict(request, StepRequest())))
        elif "receive" in exchange:
            try:
                answer = to_json(answers.popleft().result(ANSWER_TIMEOUT_S))
            except MlxrtError as error:
                raise Mismatch(f"the step failed: {error}") from error
            self._captures.match(exchange["receive"]["step"], answer, "receive.step")
        elif "half_close" in exchange:
            self._streams[name].close()


def _by_group(tables: list[dict[str, Any]]) -> dict[int, list[int]]:
    return {table.get("group", 0): table["block_ids"] for table in tables}


def _tables(by_group: dict[int, list[int]]) -> list[dict[str, Any]]:
    return [{"group": group, "block_ids": ids} for group, ids in by_group.items()]


def run_schedule(schedule: dict[str, Any], expected: list[list[int]], address: str) -> None:
    """Schedules the prompts with mlxrt_client's Scheduler.

    Raises:
        Mismatch: a sequence got other tokens than the case says.
    """
    with Client(address) as client, client.open_session() as session:
        scheduler = Scheduler(session, client.model_info(), client.server_info().limits)
        stop = schedule.get("stop_token_ids", [])
        found: dict[int, list[int]] = {
            scheduler.add(prompt, schedule["tokens_max"], stop_token_ids=stop): []
            for prompt in schedule["prompts"]
        }
        for token in scheduler.run():
            if token.token_id is None:
                raise Mismatch(f"sequence {token.sequence_id} failed: {token.error}")
            found[token.sequence_id].append(token.token_id)
        scheduler.close()
    for index, (tokens, wanted) in enumerate(zip(found.values(), expected, strict=True)):
        if tokens != wanted:
            raise Mismatch(f"tokens[{index}]: expected {wanted}, got {tokens}")
