"""What happens, counted as it happens: plain integers, read when somebody scrapes.

Written on the event loop's thread alone. Read from any: a figure may then be of a moment later
than its neighbour's, and is never torn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from mlxrt.errors import Reason
from mlxrt.telemetry.metrics import STEP_KINDS

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of buckets of durations."""
COUNTS = tuple(1 << power for power in range(14))
"""Upper bounds of buckets of rows and sequences."""


PHASES = ("queue", "build", "device", "sample", "total")
"""Parts of a step's duration, and all of it."""


class Histogram:
    """Observations by bucket; the last bucket has no bound.

    Attributes:
        total: sum of what was observed.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Observations up to each bound, the bound as Prometheus writes it."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts[:]), strict=True))


class CallTally:
    """Calls of one rpc.

    Attributes:
        ended: by status code.
    """

    __slots__ = ("ended", "seconds", "started")

    def __init__(self) -> None:
        self.started = 0
        self.ended: dict[str, int] = {}
        self.seconds = Histogram(SECONDS)


class StepTally:
    """Steps of one kind.

    Attributes:
        phases: of committed steps, parallel to PHASES, seconds.
    """

    __slots__ = ("committed", "discarded", "lost", "phases", "rows", "sequences")

    def __init__(self) -> None:
        self.committed = self.discarded = self.lost = 0
        self.phases = [Histogram(SECONDS) for _ in PHASES]
        self.rows = Histogram(COUNTS)
        self.sequences = Histogram(COUNTS)


class Tallies:
    """All that is counted outside of core and engine, which count for themselves.

    Attributes:
        calls: by `(type, service, method)`.
        rejections: by reason, as clients were told.
        steps: by kind.
        step_failures: accepted steps that did not commit, by reason.
    """

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, str], CallTally] = {}
        self.rejections: dict[Reason, int] = {}
        self.steps = {kind: StepTally() for kind in STEP_KINDS}
        self.step_failures: dict[Reason, int] = {}
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.drafts_accepted = self.drafts_rejected = 0

    def reject(self, reason: Reason) -> None:
        """Counts a refusal."""
        self.rejections[reason] = self.rejections.get(reason, 0) + 1
