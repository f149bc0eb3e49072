"""What the server needs of an engine; the MLX engine and the fake both are one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlxrt.core.model import ModelFacts
from mlxrt.core.step import StepOutcome, StepPlan
from mlxrt.errors import MlxrtError


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """Facts about how an engine computes, as GetServerInfo answers them.

    Attributes:
        device: "cpu", "metal", "cuda" or "fake", then the device's name where it has one.
        attention_path: "native", "gather" or "fake".
        blas: which one computes float32 products on a CPU, in its own words; empty elsewhere.
        mlx_version: empty for the fake.
    """

    device: str
    attention_path: str
    blas: str
    mlx_version: str


class EngineListener(Protocol):
    """Who hears from an engine. Called on the engine's own thread, or inside `submit` for an engine
    without one."""

    def on_progress(self, fraction: float, activity: str) -> None:
        """Loading has come `fraction` (0 to 1) of its way and now does `activity`."""

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        """The model is loaded and warm; `submit` may be called from now on."""

    def on_outcome(self, outcome: StepOutcome) -> None:
        """A plan has ended; outcomes come in the order of the plans."""

    def on_lost(self, error: MlxrtError) -> None:
        """Loading failed, or the device is lost: no outcome comes any more."""


class Engine(Protocol):
    """Runs plans one after the other, up to `depth` of them overlapped."""

    depth: int
    """Plans that may be submitted and unanswered at once; at least 2 so that the device never waits
    for the host."""

    def start(self, listener: EngineListener) -> None:
        """Begins to load. Returns at once; `listener` hears the rest."""

    def submit(self, plan: StepPlan) -> None:
        """Hands a plan over. Any thread, one at a time; never blocks on the device."""

    def heartbeat_age_s(self) -> float:
        """Seconds since the engine's thread last showed that it is alive; 0 for an engine without
        one."""

    def close(self) -> None:
        """Finishes the plans in hand, frees the device, joins the thread. Idempotent."""
