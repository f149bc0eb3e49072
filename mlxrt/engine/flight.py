"""A plan on its way through the engine."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import mlx.core as mx

from mlxrt.core.step import StepPlan, Timings
from mlxrt.engine.batch import Batch
from mlxrt.engine.forward import StepGraph, StepValues
from mlxrt.errors import MlxrtError


@dataclass(slots=True)
class Flight:
    """A plan that was begun and has no outcome yet.

    Attributes:
        batch: its rows; None without any.
        graph: None where the plan has no device work, or failed before it was launched.
        snapshot: the pool's handles as they were before the step; dropped at launch where they
            would force a copy.
        failure: set once it is known that the step failed.
        launched: whether the graph was handed to the device.
        values: what was read once the device had ended the step.
        read_error: what reading raised in the place of values.
        ended_s: when the device had ended the step, as far as the reading thread saw;
            `time.perf_counter`.
        was_read: set when `read` has come to its end.
    """

    plan: StepPlan
    batch: Batch | None = None
    graph: StepGraph | None = None
    snapshot: list[mx.array] = field(default_factory=list)
    failure: MlxrtError | None = None
    launched: bool = False
    launched_s: float = 0.0
    values: StepValues | None = None
    read_error: Exception | None = None
    ended_s: float = 0.0
    was_read: threading.Event = field(default_factory=threading.Event)
    timings: Timings = field(default_factory=Timings)

    @property
    def on_device(self) -> bool:
        """Whether the device may still be working for it."""
        return self.graph is not None and self.failure is None

    def read(self) -> None:
        """Waits for the device and reads `values`, or `read_error`. One thread, once."""
        assert self.graph is not None
        try:
            self.graph.wait()
            self.ended_s = time.perf_counter()
            self.values = self.graph.read()
        except Exception as error:
            self.read_error = error
        self.was_read.set()

    def unread_tokens(self) -> mx.array | None:
        """The tokens that the step samples, `[K]` int32; None where it samples none."""
        if self.graph is None or self.graph.sampled is None:
            return None
        return self.graph.sampled.tokens


def microseconds_since(start_s: float) -> int:
    """Time since `start_s` of `time.perf_counter`."""
    return int((time.perf_counter() - start_s) * 1e6)
