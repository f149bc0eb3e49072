"""Which drafts are accepted."""

from __future__ import annotations

from collections.abc import Sequence

from mlxrt.core.step import SampledRow


def verify(draft_tokens: Sequence[int], rows: Sequence[SampledRow]) -> SampledRow:
    """What a sequence with drafts gets, of the rows sampled as though each draft before them had
    been: drafts are accepted while they are what was drawn.

    This is rejection sampling for drafts of which nothing but the token is known: with p the
    distribution of a row, its draft d is accepted with probability p(d), and what is drawn in its
    place has p without d, renormalised. Rows behind the first draft that was not drawn mean
    nothing, their failures neither.

    Source: Leviathan, Kalman, Matias: Fast inference from transformers via speculative decoding,
    ICML 2023, section 2.3, for a proposal that is certain.

    Args:
        rows: one more than drafts.
    """
    accepted: list[SampledRow] = []
    for row, draft in zip(rows, draft_tokens, strict=False):
        if row.failure is not None or row.token != draft:
            break
        accepted.append(row)
    last = rows[len(accepted)]
    if last.failure is None:
        last.accepted = accepted
    return last
