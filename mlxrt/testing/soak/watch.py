"""What a server process holds, looked at from outside. Linux only: it reads /proc."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds at one time."""

    file_descriptors: int
    threads: int
    resident_bytes: int


def holdings(pid: int) -> Holdings:
    """Of the process `pid`."""
    process = Path("/proc", str(pid))
    pages = int((process / "statm").read_text().split()[1])
    return Holdings(
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
        pages * _page_bytes(),
    )


def _page_bytes() -> int:
    import resource

    return resource.getpagesize()


class Watch:
    """Samples a process twice a second until stopped.

    Attributes:
        samples: in the order of time.
    """

    def __init__(self, pid: int) -> None:
        self.samples: list[Holdings] = []
        self._pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the sampling."""
        self._stopped.set()
        self._thread.join()

    def growth(self) -> float:
        """Share by which resident memory grew over the second half: the median of its last fifth
        over that of the fifth in the middle, less one."""
        sizes = [sample.resident_bytes for sample in self.samples]
        fifth = max(1, len(sizes) // 5)
        middle = sizes[len(sizes) // 2 - fifth // 2 :][:fifth]
        return statistics.median(sizes[-fifth:]) / statistics.median(middle) - 1

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            self.samples.append(holdings(self._pid))


def settle(pid: int, before: Holdings, limit_s: float) -> Holdings:
    """Waits until the process holds no more file descriptors and threads than before, or until the
    limit; answers what it holds then."""
    end_s = time.monotonic() + limit_s
    while True:
        now = holdings(pid)
        settled = now.file_descriptors <= before.file_descriptors and now.threads <= before.threads
        if settled or time.monotonic() > end_s:
            return now
        time.sleep(0.2)
