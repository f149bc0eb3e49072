"""Shows how loading goes: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_log = structlog.get_logger("mlxrt.server")


class LoadingBar:
    """A context manager; `update` takes what an engine reports. Vanishes once all is loaded."""

    def __init__(self, console: Console | None = None) -> None:
        """Prepares it.

        Args:
            console: where the bar goes; standard error unless given.
        """
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._logged: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A bar that was never shown writes a line all the same; standard error may be full.
        if self._task is not None:
            self._progress.stop()

    def update(self, fraction: float, activity: str) -> None:
        """Loading has come `fraction` (0 to 1) of its way and now does `activity`."""
        if not self._console.is_terminal:
            if activity != self._logged:
                _log.info("loading", percent=round(100 * fraction), activity=activity)
                self._logged = activity
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(activity, total=1.0)
        self._progress.update(self._task, completed=fraction, description=activity)
        if fraction >= 1.0:
            self._progress.stop()
