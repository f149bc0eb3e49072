"""Sequences that failed alone, so that later steps of theirs fail too."""

from __future__ import annotations

from collections.abc import Iterable

from mlxrt.core.step import SampledRow, StepOutcome, StepPlan
from mlxrt.engine.mirrors import SequenceMirrors
from mlxrt.errors import MlxrtError


class FailedSequences:
    """What failed, by handle, until it is retired."""

    def __init__(self) -> None:
        self._failures: dict[int, MlxrtError] = {}

    def retire(self, handles: Iterable[int]) -> None:
        """Forgets sequences."""
        for handle in handles:
            self._failures.pop(handle, None)

    def spread(self, plan: StepPlan, outcome: StepOutcome, mirrors: SequenceMirrors) -> int:
        """Fails rows of sequences that failed in an earlier step, notes those that failed in this
        one, and answers how many they are.
        """
        failed = {
            plan.decode_handles[i]: row.failure
            for i, row in outcome.decode_details.items()
            if row.failure
        }
        for entry, row in zip(plan.entries, outcome.entry_rows, strict=True):
            if row.failure is not None:
                failed[entry.handle] = row.failure
        if self._failures:
            self._repeat(plan, outcome)
        self._failures.update((h, f) for h, f in failed.items() if h in mirrors)
        return len(failed)

    def _repeat(self, plan: StepPlan, outcome: StepOutcome) -> None:
        for index, handle in enumerate(plan.decode_handles):
            failure = self._failures.get(handle)
            if failure is not None:
                outcome.decode_details[index] = SampledRow(failure=failure)
        for index, entry in enumerate(plan.entries):
            failure = self._failures.get(entry.handle)
            if failure is not None:
                outcome.entry_rows[index] = SampledRow(failure=failure)
