"""What the server is doing, and who wants to know when that changes. Lives on the event loop."""

from __future__ import annotations

import enum
from collections.abc import Callable

from mlxrt.errors import MlxrtError, Reason

RETRY_WHILE_LOADING_MS = 1_000
RETRY_WHILE_DRAINING_MS = 5_000


class ServerState(enum.IntEnum):
    """Values as in mlxrt.v1.ServerState."""

    LOADING = 1
    SERVING = 2
    DRAINING = 3
    FAILED = 4


class Lifecycle:
    """The server's state: LOADING, SERVING, DRAINING or FAILED, in that order, none twice.

    Attributes:
        state: what the server does now.
        loss: why it failed; None unless FAILED.
        closed: the drain is over and every call is refused.
        stalled: the device does not answer; it may yet.
    """

    def __init__(self) -> None:
        self.state = ServerState.LOADING
        self.loss: MlxrtError | None = None
        self.closed = False
        self.stalled = False
        self._listeners: list[Callable[[ServerState], None]] = []

    @property
    def ready(self) -> bool:
        """Whether new work is taken and the device answers."""
        return self.state is ServerState.SERVING and not self.stalled

    def subscribe(self, listener: Callable[[ServerState], None]) -> None:
        """Calls `listener` with the state, at once and whenever state or `stalled` changes."""
        self._listeners.append(listener)
        listener(self.state)

    def move_to(self, state: ServerState) -> bool:
        """Enters a later state and tells the listeners; answers False where the state is not
        later."""
        if state <= self.state:
            return False
        self.state = state
        for listener in self._listeners:
            listener(state)
        return True

    def set_stalled(self, stalled: bool) -> None:
        """Notes a change of `stalled` and tells the listeners."""
        self.stalled = stalled
        for listener in self._listeners:
            listener(self.state)

    def fail(self, loss: MlxrtError) -> None:
        """Enters FAILED for `loss`; later losses are ignored."""
        if self.loss is None:
            self.loss = loss
            self.move_to(ServerState.FAILED)

    def check_serving(self) -> None:
        """Raises LOADING or DEVICE_LOST where no call of a session can be served; passes while
        draining."""
        if self.state is ServerState.LOADING:
            raise MlxrtError(
                Reason.LOADING, "the model is still loading", retry_delay_ms=RETRY_WHILE_LOADING_MS
            )
        if self.state is ServerState.FAILED:
            raise MlxrtError(Reason.DEVICE_LOST, "the device is lost; this server is about to exit")
        if self.closed:
            raise draining()

    def check_starting(self) -> None:
        """Raises DRAINING where nothing new may start, and what `check_serving` raises."""
        self.check_serving()
        if self.state is ServerState.DRAINING:
            raise draining()


def draining() -> MlxrtError:
    """The refusal of a server on its way down."""
    return MlxrtError(
        Reason.DRAINING, "the server drains before it stops; start elsewhere",
        retry_delay_ms=RETRY_WHILE_DRAINING_MS,
    )  # fmt: skip
