"""Commit: positions, tokens and the reply of a step that ran."""

from __future__ import annotations

import math
from array import array

from mlxrt.core.block import Block
from mlxrt.core.bounds import Bounds
from mlxrt.core.failing import fail_sequences
from mlxrt.core.fill import redo, undo
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.step import FAILED_TOKEN, ItemReply, SampledRow, StepOutcome, StepReply
from mlxrt.core.ticket import ItemRun, Ticket
from mlxrt.errors import MlxrtError, Reason


def malformed(ticket: Ticket, outcome: StepOutcome) -> MlxrtError | None:
    """Why an outcome does not answer its plan, or None."""
    plan = ticket.plan
    if len(outcome.decode_tokens) != len(plan.decode_handles):
        return MlxrtError(Reason.INTERNAL_DEFECT, "the engine answered another number of decodes")
    if len(outcome.entry_rows) != len(plan.entries):
        return MlxrtError(Reason.INTERNAL_DEFECT, "the engine answered another number of entries")
    for entry, row in zip(plan.entries, outcome.entry_rows, strict=True):
        if entry.sample and row.token is None and row.failure is None:
            return MlxrtError(Reason.INTERNAL_DEFECT, "the engine sampled no token where it should")
        described = 0 if row.prompt is None else len(row.prompt.logprobs)
        if described != entry.prompt_rows and row.failure is None:
            return MlxrtError(Reason.INTERNAL_DEFECT, "the engine described other prompt rows")
        accepted = [each.token for each in row.accepted]
        if accepted != list(entry.draft_tokens[: len(accepted)]):
            return MlxrtError(Reason.INTERNAL_DEFECT, "the engine accepted what was no draft")
    return None


def commit(ticket: Ticket, outcome: StepOutcome, bounds: Bounds) -> StepReply:
    """Advances every sequence of the step and answers the reply, its `free_blocks` still empty."""
    failures = _failures(ticket, outcome)
    if failures:
        fail_sequences(failures, ticket, bounds)
    reply = StepReply(
        ticket.step_number,
        token_ids=outcome.decode_tokens,
        timings=outcome.timings,
        bucket_row_count=outcome.bucket_row_count,
    )
    if ticket.irregular or outcome.decode_details:
        _commit_each(ticket, outcome, reply)
    else:
        for sequence, token in zip(ticket.decode_sequences, outcome.decode_tokens, strict=True):
            sequence.committed += 1
            sequence.tokens.append(token)
    for run in ticket.items:
        reply.items.append(_commit_item(ticket, run, outcome, bounds))
    return reply


def _failures(ticket: Ticket, outcome: StepOutcome) -> dict[Sequence, MlxrtError]:
    """Sequences whose rows failed, but for those that had failed before."""
    found: dict[Sequence, MlxrtError] = {}
    if outcome.decode_details:
        present = [s for i, s in enumerate(ticket.decode_sequences) if i not in ticket.absent]
        for index, row in outcome.decode_details.items():
            if row.failure is not None and present[index].failure is None:
                found[present[index]] = row.failure
    for run in ticket.items:
        if run.entry_index is not None and run.sequence.failure is None:
            failure = outcome.entry_rows[run.entry_index].failure
            if failure is not None:
                found[run.sequence] = failure
    return found


def _commit_each(ticket: Ticket, outcome: StepOutcome, reply: StepReply) -> None:
    """The decodes, one by one: some failed, moved elsewhere, or have more than a token to say."""
    tokens: list[int] = []
    logprobs: list[float] = []
    asked = False
    planned = 0
    for index, sequence in enumerate(ticket.decode_sequences):
        asked = asked or sequence.sampling.top_logprobs is not None
        row = SampledRow(failure=sequence.failure)
        if index not in ticket.absent:
            row = _row_of(
                sequence, outcome.decode_details.get(planned), outcome.decode_tokens[planned]
            )
            planned += 1
        if row.failure is not None:
            tokens.append(FAILED_TOKEN)
            reply.details.append(_failed(sequence))
        else:
            assert row.token is not None
            sequence.tokens.append(row.token)
            if sequence not in ticket.superseded:
                sequence.committed = ticket.decode_starts[index] + 1
            tokens.append(row.token)
            if row.top or row.logits is not None:
                position = ticket.decode_starts[index] + 1
                reply.details.append(ItemReply(sequence.sequence_id, position, row))
        logprobs.append(math.nan if row.logprob is None else row.logprob)
    reply.token_ids = tokens
    if asked:
        reply.logprobs = logprobs


def _row_of(sequence: Sequence, detail: SampledRow | None, token: int) -> SampledRow:
    if sequence.failure is not None:
        return SampledRow(failure=sequence.failure)
    if detail is None:
        return SampledRow(token=token)
    if detail.failure is None and detail.token is None:
        detail.token = token
    return detail


def _commit_item(ticket: Ticket, run: ItemRun, outcome: StepOutcome, bounds: Bounds) -> ItemReply:
    sequence = run.sequence
    if sequence.failure is not None:
        return _failed(sequence)
    if run.entry_index is None:
        return ItemReply(sequence.sequence_id, run.position, SampledRow())
    row = outcome.entry_rows[run.entry_index]
    if run.token_ids is not None:
        del sequence.tokens[run.start :]
        sequence.tokens.extend(array("I", run.token_ids))
        sequence.prompt_left = min(sequence.prompt_left, run.start)
        sequence.committed_given = True
    if run.sample:
        assert row.token is not None
        sequence.tokens.extend(run.draft_tokens[: len(row.accepted)])
        sequence.tokens.append(row.token)
        sequence.committed_given = True
    position = run.position + len(row.accepted)
    if sequence not in ticket.superseded:
        sequence.committed = position
    if run.draft_tokens:
        _settle(ticket, run, len(row.accepted), position, bounds)
    return ItemReply(sequence.sequence_id, position, row)


def _settle(ticket: Ticket, run: ItemRun, accepted: int, position: int, bounds: Bounds) -> None:
    """Brings what later steps planned for the sequence up to the drafts that were accepted."""
    session, sequence = ticket.session, run.sequence
    sequence.unsettled = False
    stands = sequence not in ticket.superseded
    if accepted:
        later = [each for each in session.inflight if each.doomed is None]
        undo(later, bounds)
        own = [write for write in ticket.writes if write.sequence is sequence]
        for write in own:
            write.block.filled = write.filled
            write.end = min(position - write.base, bounds.block_size)
            write.drafted = write.drafted and accepted < len(run.draft_tokens)
            write.make()
        redo(later, bounds)
        _disarm_behind(session, [write.block for write in own], later)
        sequence.known += accepted
        if stands:
            sequence.planned += accepted
        _move_items(later, sequence, accepted)
    if stands and sequence.verified and session.sequences.get(sequence.sequence_id) is sequence:
        sequence.arm(bounds)


def _disarm_behind(session: Session, filled: list[Block], later: list[Ticket]) -> None:
    """Closes the plain path of sequences that later steps put into blocks which are computed
    further now than these stand: into those of accepted drafts, or copies of them.
    """
    touched = {copy.destination for each in later for copy in each.copies}.union(filled)
    if any(block.is_tail for block in touched):
        for sequence in session.sequences.values():
            if not touched.isdisjoint(sequence.tails):
                sequence.disarm()


def _move_items(tickets: list[Ticket], sequence: Sequence, accepted: int) -> None:
    """Corrects where table changes of later steps say that the sequence stands, up to one that
    replaced the tables and with them the position.
    """
    for run in (run for ticket in tickets for run in ticket.items if run.sequence is sequence):
        if run.position == 0:
            return
        run.position += accepted


def _failed(sequence: Sequence) -> ItemReply:
    return ItemReply(sequence.sequence_id, sequence.committed, SampledRow(failure=sequence.failure))
