"""A hostile client in a process of its own: `python -m mlxrt.bench.hostile_peer KIND ADDRESS`.

Reads "go" and "stop" from standard input and says "ready" when it obeys; between the two it does
its worst, and "go" is obeyed when something of it has reached the server.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mlxrt_client import Client
from mlxrt_client.v1 import (
    AllocateBlocksRequest,
    ExecuteRequest,
    ExecutionServiceStub,
    OpenSessionRequest,
    SessionRef,
    SessionServiceStub,
    StepRequest,
)

STEP = "/mlxrt.v1.ExecutionService/Step"
EXECUTE = "/mlxrt.v1.ExecutionService/Execute"
OUTSTANDING = 64
FIRST_DEED_S = 300.0
"""Longest wait of a "go" for it to be obeyed."""
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
_EMPTY_ITEM = b"\x3a\x00"
"""An item of a StepRequest that has nothing in it: the cheapest thing to send of those that cost a
parser most."""


class Orders:
    """What the bench has said last, and whether it has been followed."""

    def __init__(self) -> None:
        self._going, self._followed = threading.Event(), threading.Event()

    def go(self) -> None:
        """Lets the work go on; returns once some of it is done.

        Raises:
            TimeoutError: it does not come to that.
        """
        self._followed.clear()
        self._going.set()
        if not self._followed.wait(FIRST_DEED_S):
            raise TimeoutError("no hostile call has reached the server")

    def stop(self) -> None:
        """Lets it pause."""
        self._going.clear()

    @property
    def going(self) -> bool:
        """Whether to go on."""
        return self._going.is_set()

    def wait(self) -> None:
        """Waits until it is to go on."""
        self._going.wait()

    def done(self) -> None:
        """Something hostile has reached the server."""
        self._followed.set()


def invalid_flood(address: str, orders: Orders) -> None:
    """Calls that are refused, as many as go: bytes that are no message, and steps with a fault in
    their last item."""
    session = SessionRef(session_id="0" * 32, epoch=1)
    late = StepRequest(session=session, step_number=1, decode_sequence_ids=range(1, 257))
    bodies = [os.urandom(200), late.SerializeToString(), b"", b"\x3a\x00" * 500]
    _flood(address, orders, bodies)


def huge_messages(address: str, orders: Orders) -> None:
    """Messages as large as the server takes them, of empty items and of bytes that are none."""
    with Client(address) as client:
        size = client.server_info().limits.max_message_bytes
    _flood(address, orders, [_EMPTY_ITEM * (size // 2 - 8), bytes(size + 100)], 4)


def many_items(address: str, orders: Orders) -> None:
    """Messages of 60 KiB that hold nothing but empty items."""
    _flood(address, orders, [_EMPTY_ITEM * (30 << 10)], 16)


def _flood(
    address: str, orders: Orders, bodies: list[bytes], outstanding: int = OUTSTANDING
) -> None:
    room = threading.Semaphore(outstanding)

    def answered(_: object) -> None:
        orders.done()
        room.release()

    with grpc.insecure_channel(address, _OPTIONS) as channel:
        call = channel.unary_unary(STEP)
        while True:
            for body in bodies:
                orders.wait()
                room.acquire()
                call.future(body, timeout=30).add_done_callback(answered)


def slow_reader(address: str, orders: Orders) -> None:
    """Streams of steps that are valid, whose answers nobody reads but the first."""
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        sessions, execution = SessionServiceStub(channel), ExecutionServiceStub(channel)
        while True:
            orders.wait()
            opened = sessions.OpenSession(
                OpenSessionRequest(request_id=os.urandom(8).hex(), lease_ttl_ms=2_000)
            )
            blocks = execution.AllocateBlocks(
                AllocateBlocksRequest(
                    session=opened.session, request_id="b", counts=[{"group": 0, "count": 1}]
                )
            ).blocks
            call = channel.stream_stream(EXECUTE)(_steps(opened.session, blocks, orders))
            next(call, None)
            orders.done()
            threading.Event().wait(1.0)
            call.cancel()


def _steps(session: SessionRef, blocks: object, orders: Orders) -> Iterator[bytes]:
    """A prefill, then single decodes from the start, over and over."""
    number = 1
    new = {"sequence_id": 1, "prompt_token_ids": [3, 4], "tables": blocks}
    item = {"sequence_id": 1, "row_count": 2, "sample": True, "registered": {}}
    fields: dict[str, Any] = {"new_sequences": [new], "items": [item]}
    while orders.going:
        step = StepRequest(session=session, step_number=number, **fields)
        yield ExecuteRequest(step=step).SerializeToString()
        number += 1
        fields = {"items": [{**item, "start_position": 0}]}


def never_reading(address: str, orders: Orders) -> None:
    """Streams of health, of the tokenizer and of steps that are opened and left."""
    with grpc.insecure_channel(address, [*_OPTIONS, ("grpc.http2.lookahead_bytes", 1)]) as channel:
        while True:
            orders.wait()
            open_calls = []
            for _ in range(100):
                watch = health_pb2_grpc.HealthStub(channel).Watch
                open_calls.append(watch(health_pb2.HealthCheckRequest()))
                outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
                call = channel.stream_stream(EXECUTE)(iter(outbox.get, None))
                for _ in range(20):
                    outbox.put(b"\xff")
                open_calls.append(call)
                call.add_callback(lambda box=outbox: box.put(None))
            open_calls[0].initial_metadata()
            orders.done()
            threading.Event().wait(0.5)
            for each in open_calls:
                each.cancel()


def reconnect_storm(address: str, orders: Orders) -> None:
    """Connections that say half a sentence, or ask once, and are gone."""
    while True:
        orders.wait()
        for _ in range(20):
            with contextlib.suppress(OSError), _connected(address) as connection:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        with grpc.insecure_channel(address, _OPTIONS) as channel, contextlib.suppress(
            grpc.RpcError
        ):
            channel.unary_unary(STEP)(b"", timeout=5)
        orders.done()


def _connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


KINDS: dict[str, Callable[[str, Orders], None]] = {
    "invalid_flood": invalid_flood,
    "huge_messages": huge_messages,
    "many_items": many_items,
    "slow_reader": slow_reader,
    "never_reading": never_reading,
    "reconnect_storm": reconnect_storm,
}


def main() -> None:
    """Obeys standard input until it ends."""
    kind, address = sys.argv[1:]
    orders = Orders()

    def work() -> None:
        while True:  # whatever the server does to it, it comes back
            with contextlib.suppress(grpc.RpcError, ValueError):
                KINDS[kind](address, orders)

    threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "go":
            orders.go()
        else:
            orders.stop()
        print("ready", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
