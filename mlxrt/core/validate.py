"""Validates a step whole and drafts its changes; touches nothing."""

from __future__ import annotations

from collections.abc import Sequence as Row

from mlxrt.core.bounds import Bounds
from mlxrt.core.draft import Draft
from mlxrt.core.lost_rows import lose_rows, note_tables
from mlxrt.core.mask_checks import check_masks, sampled_rows
from mlxrt.core.row_checks import Place, check_decode, check_item_rows, check_shape
from mlxrt.core.session import Session
from mlxrt.core.step import StepInput
from mlxrt.core.table_checks import (
    check_registrations,
    check_releases,
    check_table_change,
    unleased,
)
from mlxrt.core.ticket import ItemRun
from mlxrt.errors import Reason, field_error, field_invalid, limit_exceeded


def validate(session: Session, step: StepInput, bounds: Bounds) -> Draft:
    """Drafts the step, each part against the state that the parts before it would leave.

    Raises:
        MlxrtError: as ExecutionService.Step lists them, less those of step numbers.
    """
    _check_limits(step, bounds)
    draft = Draft(session)
    if step.releases:
        check_releases(draft, step.releases)
    if step.new_sequences:
        check_registrations(draft, step.new_sequences, bounds)
    if step.items:
        _check_items(draft, step, bounds)
    if step.copies:
        _check_copies(draft, step, bounds)
    _check_decodes(draft, step, bounds)
    for index, (run, item) in enumerate(zip(draft.items, step.items, strict=True)):
        if run.sequence.failure is None:
            check_item_rows(draft, run, item, Place(index, is_item=True), bounds)
        else:
            run.position = run.sequence.committed
            if item.row_count:
                lose_rows(
                    draft, run.sequence, item.start_position, item.row_count, index, bounds,
                    len(item.draft_tokens),
                )  # fmt: skip
    _check_prompt_rows(draft, bounds)
    if step.masks:
        if step.deferred:
            raise field_invalid("masks", "come later where sampling is deferred")
        check_masks(step.masks, sampled_rows(step), bounds.limits)
    return draft


def _check_prompt_rows(draft: Draft, bounds: Bounds) -> None:
    rows = sum(run.prompt_rows for run in draft.items)
    maximum = bounds.limits.max_prompt_logprobs_rows
    if rows > maximum:
        raise limit_exceeded("max_prompt_logprobs_rows", maximum, rows, "items")


def _check_limits(step: StepInput, bounds: Bounds) -> None:
    limits = bounds.limits
    rows = sequences = len(step.decode_ids)
    path = "decode_sequence_ids"
    if step.items:
        path = "items"
        sequences += len(step.items)
        drafts = sum(len(item.draft_tokens) for item in step.items)
        if drafts > limits.max_step_drafts:
            raise limit_exceeded("max_step_drafts", limits.max_step_drafts, drafts, path)
        rows += drafts + sum(item.row_count for item in step.items)
        logits = sum(item.return_logits for item in step.items)
        if logits > limits.max_logits_rows:
            raise limit_exceeded("max_logits_rows", limits.max_logits_rows, logits, path)
    if rows > limits.max_step_rows:
        raise limit_exceeded("max_step_rows", limits.max_step_rows, rows, path)
    if sequences > limits.max_step_sequences:
        raise limit_exceeded("max_step_sequences", limits.max_step_sequences, sequences, path)
    if len(step.copies) > limits.max_step_copies:
        raise limit_exceeded(
            "max_step_copies", limits.max_step_copies, len(step.copies), "block_copies"
        )


def _check_items(draft: Draft, step: StepInput, bounds: Bounds) -> None:
    """Finds the items' sequences and drafts their table changes."""
    seen = set(step.decode_ids)
    for index, item in enumerate(step.items):
        path = f"items[{index}]"
        if item.sequence_id in seen:
            raise field_invalid(
                f"{path}.sequence_id", f"sequence {item.sequence_id} stands in the step twice"
            )
        seen.add(item.sequence_id)
        sequence = draft.sequence(item.sequence_id)
        if sequence is None:
            raise field_error(
                Reason.SEQUENCE_UNKNOWN, f"{path}.sequence_id", f"no sequence {item.sequence_id}"
            )
        check_shape(item, Place(index, is_item=True), bounds)
        run = ItemRun(sequence)
        if sequence.failure is None:
            check_table_change(draft, sequence, item, path, bounds)
            run.count = item.row_count
        else:
            note_tables(draft, sequence, item, bounds)
        draft.items.append(run)


def _check_copies(draft: Draft, step: StepInput, bounds: Bounds) -> None:
    for index, (group, source_id, destination_id) in enumerate(step.copies):
        path = f"block_copies[{index}]"
        if not 0 <= group < bounds.group_count:
            raise field_invalid(f"{path}.group", f"must be below {bounds.group_count}")
        leased = draft.session.blocks[group]
        source, destination = leased.get(source_id), leased.get(destination_id)
        if source is None:
            raise unleased(bounds, group, source_id, f"{path}.source_block_id")
        path = f"{path}.destination_block_id"
        if destination is None:
            raise unleased(bounds, group, destination_id, path)
        if destination in draft.copied:
            raise field_error(
                Reason.SLOT_CONFLICT,
                path,
                f"block {destination_id} is the destination of two copies",
            )
        if draft.ref_count(destination) > 1:
            raise field_error(
                Reason.BLOCK_SHARED,
                path,
                f"block {destination_id} is named more than once by tables",
            )
        if destination.refs > 0:
            draft.distrust = True
        draft.copies.append((source, destination))
        draft.copied[destination] = source.filled


def _check_decodes(draft: Draft, step: StepInput, bounds: Bounds) -> None:
    decode_ids = step.decode_ids
    if len(set(decode_ids)) != len(decode_ids):
        _refuse_twice(decode_ids)
    sequences = draft.session.sequences
    plain = not draft.distrust
    regular = not draft.released and not draft.registered
    append = draft.decodes.append
    for index, sequence_id in enumerate(decode_ids):
        sequence = sequences.get(sequence_id) if regular else draft.sequence(sequence_id)
        if sequence is None:
            raise field_error(
                Reason.SEQUENCE_UNKNOWN,
                f"decode_sequence_ids[{index}]",
                f"no sequence {sequence_id}",
            )
        append(sequence)
        if plain and sequence.planned < sequence.decode_limit:
            continue
        draft.checked_decodes.add(index)
        if sequence.failure is None:
            check_decode(draft, sequence, Place(index, is_item=False), bounds)
        else:
            lose_rows(draft, sequence, None, 1, -1, bounds)


def _refuse_twice(decode_ids: Row[int]) -> None:
    seen: set[int] = set()
    for index, sequence_id in enumerate(decode_ids):
        if sequence_id in seen:
            raise field_invalid(
                f"decode_sequence_ids[{index}]", f"sequence {sequence_id} stands in the step twice"
            )
        seen.add(sequence_id)
