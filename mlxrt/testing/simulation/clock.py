"""Virtual time: events in the order of their times, and of their making where times are equal."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Event:
    """Something that will happen unless it is cancelled."""

    __slots__ = ("_action", "_arguments")

    def __init__(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._action: Callable[..., None] | None = action
        self._arguments = arguments

    def cancel(self) -> None:
        """Has it not happen."""
        self._action = None

    def happen(self) -> bool:
        """Happens; answers False where it was cancelled."""
        if self._action is None:
            return False
        self._action(*self._arguments)
        return True


class EventQueue:
    """What will happen and when, microseconds from the start of the run.

    Attributes:
        now_us: the present.
        handled: events that have happened.
    """

    def __init__(self) -> None:
        """Nothing is due and it is 0."""
        self.now_us = 0
        self.handled = 0
        self._heap: list[tuple[int, int, Event]] = []
        self._made = 0

    def after(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> Event:
        """Has `action` happen `delay_us` from now."""
        self._made += 1
        event = Event(action, arguments)
        heapq.heappush(self._heap, (self.now_us + delay_us, self._made, event))
        return event

    def next(self) -> bool:
        """Lets the next event happen; answers False where there is none."""
        if not self._heap:
            return False
        self.now_us, _, event = heapq.heappop(self._heap)
        self.handled += event.happen()
        return True

    def run_until(self, end_us: int) -> None:
        """Lets everything happen that is due by `end_us`."""
        while self._heap and self._heap[0][0] <= end_us:
            self.next()
        self.now_us = max(self.now_us, end_us)


class Clocks:
    """The server machine's two clocks; both can jump.

    Attributes:
        asleep_ms: how far the monotonic clock is ahead of the run for sleeps of the machine.
        wall_ms_ahead: how far the wall clock has been set.
    """

    def __init__(self, queue: EventQueue) -> None:
        """Neither has jumped."""
        self.asleep_ms = 0
        self.wall_ms_ahead = 0
        self._queue = queue

    def monotonic_ms(self) -> int:
        """Milliseconds that leases go by."""
        return 1_000 + self._queue.now_us // 1_000 + self.asleep_ms

    def wall_ms(self) -> int:
        """Milliseconds of the wall clock."""
        return 1_700_000_000_000 + self.monotonic_ms() + self.wall_ms_ahead
