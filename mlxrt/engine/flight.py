"""A plan on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import mlx.core as mx

from mlxrt.core.step import StepPlan, Timings
from mlxrt.engine.batch import Batch
from mlxrt.engine.forward import StepGraph
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
        watched_error: what waiting for the step in another thread raised.
        launched: whether the graph was handed to the device.
        ended: set, by any thread, once the device has ended the step.
    """

    plan: StepPlan
    batch: Batch | None = None
    graph: StepGraph | None = None
    snapshot: list[mx.array] = field(default_factory=list)
    failure: MlxrtError | None = None
    watched_error: Exception | None = None
    ended: bool = False
    launched: bool = False
    launched_s: float = 0.0
    timings: Timings = field(default_factory=Timings)

    @property
    def on_device(self) -> bool:
        """Whether the device may still be working for it."""
        return self.graph is not None and self.failure is None

    def unread_tokens(self) -> mx.array | None:
        """The tokens that the step samples, `[K]` int32; None where it samples none."""
        if self.graph is None or self.graph.sampled is None:
            return None
        return self.graph.sampled.tokens


def microseconds_since(start_s: float) -> int:
    """Time since `start_s` of `time.perf_counter`."""
    return int((time.perf_counter() - start_s) * 1e6)
