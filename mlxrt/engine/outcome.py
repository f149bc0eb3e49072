"""From what was read of a step to its outcome."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxrt.core.step import Entry, SampledRow, StepOutcome
from mlxrt.core.verification import verify
from mlxrt.engine.flight import Flight
from mlxrt.engine.forward import StepValues


def outcome_of(flight: Flight, values: StepValues) -> StepOutcome:
    """Assembles the outcome of a step that ended, of what was read of it."""
    tokens, details, logits = values.tokens, values.details, values.logits
    plan, batch = flight.plan, flight.batch
    outcome = StepOutcome(plan.ticket, timings=flight.timings)
    if batch is None:
        outcome.entry_rows = [SampledRow() for _ in plan.entries]
        return outcome
    decode_count = len(plan.decode_handles)
    outcome.decode_tokens = tokens[:decode_count]
    outcome.decode_details = {i: row for i, row in details.items() if i < decode_count}
    outcome.bucket_row_count = batch.bucket_row_count
    answers: dict[int, NDArray[np.float32]] = {}
    if logits is not None:
        answers = dict(zip(batch.selection.logits, logits, strict=True))
    for entry, first in zip(plan.entries, batch.selection.of_entry, strict=True):
        if first < 0:
            outcome.entry_rows.append(SampledRow())
            continue
        rows = [
            details.get(k) or SampledRow(token=tokens[k])
            for k in range(first, first + 1 + len(entry.draft_tokens))
        ]
        row = verify(entry.draft_tokens, rows)
        outcome.entry_rows.append(_entry_row(entry, row, answers.get(first)))
    if values.prompt is not None:
        values.prompt.give_to(plan.entries, outcome.entry_rows)
    return outcome


def _entry_row(entry: Entry, row: SampledRow, logits: NDArray[np.float32] | None) -> SampledRow:
    if row.failure is not None:
        return SampledRow(failure=row.failure)
    if not entry.sample:
        row = SampledRow()
    if logits is not None:
        row.logits = logits.astype("<f4").tobytes()
    return row
