"""The thread that waits for launched steps and reads their values, so that neither an answer waits
for the next launch nor the next launch for an answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxrt.engine.flight import Flight


class Reader:
    """Reads the flights it is given, in order.

    What it reads it reads alone: nothing is built on those arrays, and no other thread waits for
    them, because MLX guards no array against two threads.
    """

    def __init__(self, ended: Callable[[Flight], None]) -> None:
        """Takes `ended`, which it calls on its own thread after each flight."""
        self._ended = ended
        self._flights: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="mlxrt-reader", daemon=True)

    def start(self) -> None:
        """Starts the thread. Once."""
        self._thread.start()

    def take(self, flight: Flight) -> None:
        """Has a launched flight read. The engine's thread calls this once the launch came back."""
        self._flights.put(flight)

    def stop(self) -> None:
        """Ends the thread, after the flights that it was given."""
        self._flights.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (flight := self._flights.get()) is not None:
            flight.read()
            self._ended(flight)
            # Whoever drops the last reference frees the arrays: that shall be the engine's thread.
            del flight
