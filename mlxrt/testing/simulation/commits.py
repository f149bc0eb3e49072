"""What a committed step's answer has to be, after what was committed before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlxrt.core.step import FAILED_TOKEN, Mask, StepReply, TokenSource
from mlxrt.testing.simulation.watched import (
    WatchedSequence,
    WatchedSession,
    WatchedStep,
    is_counted_elsewhere,
)


@dataclass(frozen=True, slots=True)
class Greedy:
    """The fake model's greedy token, under a mask or without one.

    Args:
        expected_token: without one, after given tokens.
    """

    expected_token: Callable[[Sequence[int]], int]
    vocabulary_size: int

    def after(self, tokens: Sequence[int], mask: Mask | None, row: int) -> int:
        """The first token that the mask's row allows from the unmasked one upwards, then from 0:
        the logits fall in this order. The unmasked one where it allows nothing."""
        token, size = self.expected_token(tokens), self.vocabulary_size
        if mask is None:
            return token
        order = (each % size for each in range(token, token + size))
        return next((each for each in order if is_allowed(mask, row, each)), token)


def disagreements(
    watched: WatchedStep,
    reply: StepReply,
    injected: int,
    session: WatchedSession | None,
    greedy: Greedy,
) -> Iterator[str]:
    """V8: every token is the model's after what was committed before. Enters the step's tokens into
    the book, and says what disagrees; to be iterated to its end.

    Args:
        injected: rows that the engine failed on purpose.
        session: None where it has ended.
    """
    new_failures = 0
    own, fallen = watched.new_failures(reply)
    spoilt = any(sequence.failed for sequence in watched.decodes + watched.items)
    if len(reply.token_ids) != len(watched.decodes):
        yield "another number of tokens"
    barred = {each.sequence_id for each in reply.details if is_counted_elsewhere(each.row)}
    decodes = zip(watched.step.decode_ids, watched.decodes, reply.token_ids, strict=False)
    for sequence_id, sequence, token in decodes:
        if token == FAILED_TOKEN:
            new_failures += not sequence.failed and sequence_id not in barred
            sequence.failed = True
        else:
            mask = watched.masks.get(sequence_id)
            yield from _sampled(sequence, token, mask, 0, greedy)
    items = zip(watched.step.items, watched.items, reply.items, strict=True)
    for item, sequence, result in items:
        row = result.row
        if row.failure is not None:
            new_failures += not sequence.failed and not is_counted_elsewhere(row)
            sequence.failed = True
            continue
        if sequence.failed:
            yield "a failed sequence went on"
        if item.source is TokenSource.EXPLICIT:
            start = result.position - item.row_count - len(row.accepted)
            sequence.tokens[start:] = item.token_ids
        mask = watched.masks.get(item.sequence_id)
        for index, sampled in enumerate((*row.accepted, row) if item.sample else ()):
            yield from _sampled(sequence, sampled.token, mask, index, greedy)
    # A row may have been poisoned whose sequence had failed already; and what was accepted before a
    # failure was known may share or copy what it spoilt.
    late = session is not None and session.failures > watched.failures
    if not (new_failures == injected or (spoilt and new_failures < injected) or late):
        yield f"P6: {new_failures} sequences failed, not {injected}"
    if fallen and not own and not late:
        yield f"P6: {fallen} failed with none that did"
    if session is not None:
        session.failures += own


def _sampled(
    sequence: WatchedSequence,
    token: int | None,
    mask: Mask | None,
    row: int,
    greedy: Greedy,
) -> Iterator[str]:
    assert token is not None
    if sequence.failed:
        yield "a failed sequence went on"
    if mask is not None and not is_allowed(mask, row, token):
        yield f"V8: token {token} is not allowed"
    if sequence.greedy:
        wanted = greedy.after(sequence.tokens, mask, row)
        if token != wanted:
            yield f"V8: token {token}, not {wanted}"
    sequence.tokens.append(token)


def is_allowed(mask: Mask, row: int, token: int) -> bool:
    """Whether a row of the mask allows the token."""
    row_bytes = len(mask.allowed) // mask.row_count
    return bool(mask.allowed[row * row_bytes + token // 8] >> token % 8 & 1)
