"""What a server process holds, looked at from outside. Linux only: it reads /proc."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.5
_GRPC_THREADS = ("event_engine", "grpc_", "lifeguard")
"""How gRPC names its threads; all others have the process's name or one that we gave."""
GRPC_THREADS_SLACK = 16
"""gRPC's pool grows while all of its threads are busy, which is more often on a slow machine, and
shrinks when it likes. What faults leaked one by one would be more than this."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds at one time.

    Attributes:
        threads: those that are not gRPC's.
        memory_bytes: of its own, resident or swapped out. Mapped files are left out: the system
            drops their pages and reads them again as it likes.
    """

    file_descriptors: int
    threads: int
    grpc_threads: int
    memory_bytes: int

    def leaked_file_descriptors(self, before: Holdings) -> int:
        """How many there are beyond those of `before`."""
        return max(0, self.file_descriptors - before.file_descriptors)

    def leaked_threads(self, before: Holdings) -> int:
        """How many there are beyond those of `before` and what gRPC's pool may grow by."""
        of_grpc = self.grpc_threads - before.grpc_threads - GRPC_THREADS_SLACK
        return max(0, self.threads - before.threads) + max(0, of_grpc)


def holdings(pid: int) -> Holdings:
    """Of the process `pid`."""
    process = Path("/proc", str(pid))
    names = list(_thread_names(process))
    of_grpc = sum(name.startswith(_GRPC_THREADS) for name in names)
    file_descriptors = len(list((process / "fd").iterdir()))
    return Holdings(file_descriptors, len(names) - of_grpc, of_grpc, _memory_bytes(process))


def _thread_names(process: Path) -> Iterator[str]:
    for task in (process / "task").iterdir():
        with contextlib.suppress(OSError):  # it ended since it was listed
            yield (task / "comm").read_text().strip()


def _memory_bytes(process: Path) -> int:
    lines = (line.split() for line in (process / "status").read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "VmSwap:"))


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
        """Share by which its memory grew over the second half: the median of its last fifth
        over that of the fifth in the middle, less one."""
        sizes = [sample.memory_bytes for sample in self.samples]
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
        leaked = now.leaked_file_descriptors(before) + now.leaked_threads(before)
        if not leaked or time.monotonic() > end_s:
            return now
        time.sleep(0.2)
