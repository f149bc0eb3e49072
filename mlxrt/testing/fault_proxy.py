"""A TCP proxy that cuts, holds, delays, throttles and doubles what goes between client and
server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """Listens on a free port of the loopback and passes bytes on to a server; a context manager.

    The attributes may be set at any time, from any thread, and hold for bytes that come after.

    Attributes:
        address: where it listens, in gRPC's form, once entered.
        refusing: connections are taken and reset at once.
        hold_up, hold_down: what the client, the server sends stays here, and its sender learns
            nothing: a cable that was pulled on one side. Bytes held go on when this ends.
        delay_s: each piece waits this long, in order.
        bytes_per_s: most bytes each way; None for no limit.
        doubling: what the client sends goes to the server a second time, over a connection of its
            own whose answers nobody reads.
        connections: connections taken so far.
        doubled: bytes sent a second time.
    """

    def __init__(self, upstream: str) -> None:
        """Prepares the proxy.

        Args:
            upstream: `unix:PATH` or `HOST:PORT` of the server.
        """
        self.address = ""
        self.refusing = self.hold_up = self.hold_down = self.doubling = False
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.connections = self.doubled = 0
        self._upstream = upstream
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopped: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stopped is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def cut(self) -> None:
        """Resets every connection, on both sides, and returns once that is done."""
        done = threading.Event()

        def reset() -> None:
            for writer in tuple(self._writers):
                _reset(writer)
            done.set()

        self._loop.call_soon_threadsafe(reset)
        done.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopped.wait()
        server.close()
        for writer in tuple(self._writers):
            _reset(writer)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream.startswith("unix:"):
            return await asyncio.open_unix_connection(self._upstream.removeprefix("unix:"))
        host, _, port = self._upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        held = [writer]
        try:
            if not self.refusing:
                await self._pass_on(reader, writer, held)
        except (OSError, asyncio.CancelledError):  # the proxy's end; streams log what escapes
            pass
        finally:
            self._tasks.discard(task)
            for each in held:
                self._writers.discard(each)
                _reset(each)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: list[asyncio.StreamWriter],
    ) -> None:
        down, up = await self._connect()
        held.append(up)
        second = None
        pumps = []
        if self.doubling:
            answers, second = await self._connect()
            held.append(second)
            pumps.append(asyncio.create_task(_discard(answers)))
        self._writers.update(held)
        both = [
            asyncio.create_task(self._pump(reader, up, "hold_up", second)),
            asyncio.create_task(self._pump(down, writer, "hold_down", None)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (*both, *pumps):
                pump.cancel()
            await asyncio.gather(*both, *pumps, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hold: str,
        second: asyncio.StreamWriter | None,
    ) -> None:
        """Passes bytes one way until either side ends."""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while getattr(self, hold):  # noqa: ASYNC110 - other threads set it
                    await asyncio.sleep(0.01)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()
                if second is not None:
                    self.doubled += len(data)
                    second.write(data)


async def _discard(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(_CHUNK_BYTES):
            pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes at once, so that the other side reads a reset and not an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
