"""vLLM's grammar bitmasks as mlxrt's token masks: both have one bit for each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mlxrt_client import messages, v1

from mlxrt_vllm.translation import Entry, Plan

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput


def token_masks(
    plan: Plan, grammar: GrammarOutput | None, vocabulary_size: int
) -> list[v1.TokenMask]:
    """Returns the masks of the plan's step.

    Args:
        plan: whose step deferred its sampling.
        grammar: rows for each constrained request, in a block of as many as a request has drafts at
            most, and one more; None for none.
        vocabulary_size: of the model.
    """
    masks: list[v1.TokenMask] = []
    if grammar is None:
        return masks
    ids = grammar.structured_output_request_ids
    rows = np.ascontiguousarray(grammar.grammar_bitmask, dtype="<i4")
    stride = len(rows) // len(ids)
    words = -(-vocabulary_size // 32)
    entries: dict[str, Entry] = {entry.sequence.request_id: entry for entry in plan.entries}
    for index, request_id in enumerate(ids):
        entry = entries[request_id]
        first = index * stride
        chosen = rows[first : first + 1 + len(entry.drafts), :words]
        mask = messages.token_mask(
            entry.sequence.number, vocabulary_size, [row.tobytes() for row in chosen]
        )
        masks.append(mask)
    return masks
