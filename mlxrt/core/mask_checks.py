"""Checks of token masks: whom they are for, and how many rows they have."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Row

from mlxrt.core.model import Limits
from mlxrt.core.step import Mask, StepInput
from mlxrt.errors import field_invalid, limit_exceeded


def sampled_rows(step: StepInput) -> dict[int, int]:
    """By id, the sequences that the step samples, each with its number of sampled rows."""
    rows = dict.fromkeys(step.decode_ids, 1)
    for item in step.items:
        if item.sample:
            rows[item.sequence_id] = 1 + len(item.draft_tokens)
    return rows


def check_masks(masks: Row[Mask], sampled: Mapping[int, int], limits: Limits) -> None:
    """Refuses masks that do not fit what `sampled_rows` says of their step."""
    total = 0
    seen: set[int] = set()
    for index, mask in enumerate(masks):
        path = f"masks[{index}]"
        count = sampled.get(mask.sequence_id)
        if count is None:
            raise field_invalid(
                f"{path}.sequence_id", f"the step does not sample sequence {mask.sequence_id}"
            )
        if mask.sequence_id in seen:
            raise field_invalid(f"{path}.sequence_id", f"sequence {mask.sequence_id} has two masks")
        seen.add(mask.sequence_id)
        if mask.row_count != count:
            raise field_invalid(
                f"{path}.allowed.shape[0]",
                f"must be {count}: one row, and one for each draft",
            )
        total += count
    if total > limits.max_mask_rows:
        raise limit_exceeded("max_mask_rows", limits.max_mask_rows, total, "masks")
