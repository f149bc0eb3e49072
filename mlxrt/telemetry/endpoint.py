"""The HTTP port that Prometheus scrapes: prometheus_client's own server, on threads of its own."""

from __future__ import annotations

import contextlib
import threading
from socketserver import BaseServer
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

IDLE_S = 10.0
"""How long a connection may take over its request; it holds a thread."""


class MetricsEndpoint:
    """Serves a collector's metrics, and on Linux the process's own (`process_…`).

    Attributes:
        address: where it listens, HOST:PORT.
    """

    def __init__(self, address: str, collector: Collector) -> None:
        """Listens. Blocks for as long as the resolver takes; call it off the event loop.

        Args:
            address: HOST:PORT; port 0 for any free one.

        Raises:
            OSError: the port is taken, or the host is not this machine's.
        """
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        host, _, port = address.rpartition(":")
        self._server: BaseServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        self._server.RequestHandlerClass = _impatient(self._server.RequestHandlerClass)
        self.address = f"{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops listening. Blocks for up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _impatient(handler: Any) -> Any:
    """The request handler with a limit of time, and silent where a scraper goes away: the library's
    own would print a traceback into the log."""

    class Handler(handler):  # type: ignore[misc]
        timeout = IDLE_S

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

    return Handler
