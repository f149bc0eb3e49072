"""What is seen of each step as it ends: the tallies of the metrics, and a line of the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from mlxrt.core.step import StepInput, StepReply, TokenSource
from mlxrt.errors import Reason
from mlxrt.server.waiter import Waiter
from mlxrt.telemetry.tallies import Tallies

StepObserver = Callable[[Waiter, StepReply], None]
"""Called on the event loop when an accepted step ends, with its run and its reply."""

_US = 1e-6
_log = structlog.get_logger("mlxrt.server")


class StepSize(NamedTuple):
    """How large a step is; `kind` as mlxrt.telemetry.metrics.STEP_KINDS defines it.

    Attributes:
        rows: those of drafts among them.
        prompt_rows: rows that neither continue what was sampled last nor verify a draft.
    """

    kind: str
    sequences: int
    rows: int
    prompt_rows: int


def size_of(step: StepInput) -> StepSize:
    """The size of a step as it was asked for."""
    rows, prompt_rows = len(step.decode_ids), 0
    if rows and not step.items:
        return StepSize("decode", rows, rows, 0)
    for item in step.items:
        rows += item.row_count + len(item.draft_tokens)
        if item.source is not TokenSource.LAST_SAMPLED:
            prompt_rows += item.row_count
    kind = "mixed"
    if prompt_rows == 0:
        kind = "decode" if rows else "empty"
    elif prompt_rows == rows:
        kind = "prefill"
    return StepSize(kind, len(step.decode_ids) + len(step.items), rows, prompt_rows)


def generated_count(reply: StepReply) -> int:
    """Tokens that the step sampled, accepted drafts among them."""
    count = len(reply.token_ids)
    for detail in reply.details:
        count -= detail.row.failure is not None
    for item in reply.items:
        count += (item.row.token is not None) + len(item.row.accepted)
    return count


def _tally_drafts(tallies: Tallies, step: StepInput, reply: StepReply) -> None:
    for asked, item in zip(step.items, reply.items, strict=True):
        if asked.draft_tokens:
            accepted = len(item.row.accepted)
            tallies.drafts_accepted += accepted
            tallies.drafts_rejected += len(asked.draft_tokens) - accepted


def tally_steps(tallies: Tallies) -> StepObserver:
    """An observer that counts; a step costs it a few microseconds."""

    def observe(run: Waiter, reply: StepReply) -> None:
        size = size_of(run.step)
        tally = tallies.steps[size.kind]
        if reply.error is not None:
            reason = reply.error.reason
            tallies.step_failures[reason] = tallies.step_failures.get(reason, 0) + 1
            if reason is Reason.DEVICE_LOST:
                tally.lost += 1
            else:
                tally.discarded += 1
            return
        tally.committed += 1
        tallies.prompt_tokens += size.prompt_rows
        tallies.generated_tokens += generated_count(reply)
        if reply.items:
            _tally_drafts(tallies, run.step, reply)
        tally.rows.observe(size.rows)
        tally.sequences.observe(size.sequences)
        timings, (queue, build, device, sample, total) = reply.timings, tally.phases
        queue.observe(timings.queue_us * _US)
        build.observe(timings.build_us * _US)
        device.observe(timings.device_us * _US)
        sample.observe(timings.sample_us * _US)
        total.observe(time.perf_counter() - run.accepted_s)

    return observe


def log_steps(attention_path: str) -> StepObserver:
    """An observer that writes a debug line per step; it holds neither tokens nor text."""

    def observe(run: Waiter, reply: StepReply) -> None:
        size, timings = size_of(run.step), reply.timings
        fields: dict[str, object] = {
            "session_id": run.session_id, "step_number": run.step_number, "kind": size.kind,
            "sequences": size.sequences, "tokens": size.rows,
            "duration_seconds": round(time.perf_counter() - run.accepted_s, 6),
            "queue_us": timings.queue_us, "build_us": timings.build_us,
            "device_us": timings.device_us, "sample_us": timings.sample_us,
            "bucket_rows": reply.bucket_row_count, "attention_path": attention_path, "code": "OK",
        }  # fmt: skip
        if reply.error is not None:
            fields |= {"code": reply.error.reason.code.name, "reason": reply.error.reason.name}
        failed = sum(item.row.failure is not None for item in (*reply.details, *reply.items))
        if failed:
            fields["failed_sequences"] = failed
        if run.trace_id:
            fields["trace_id"] = run.trace_id
        _log.debug("step", **fields)

    return observe
