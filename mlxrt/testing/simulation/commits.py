"""What a committed step's answer has to be, after what was committed before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlxrt.core.step import FAILED_TOKEN, Item, ItemReply, Mask, SampledRow, StepReply, TokenSource
from mlxrt.errors import Reason
from mlxrt.testing.simulation.foretold import Foretold, allowed_bits, is_allowed
from mlxrt.testing.simulation.watched import WatchedSequence, WatchedSession, WatchedStep


def disagreements(
    watched: WatchedStep,
    reply: StepReply,
    injected: int,
    session: WatchedSession | None,
    foretold: Foretold,
) -> Iterator[str]:
    """V8: every token is the model's after what was committed before, drafts that are right are
    accepted, masks obeyed, prompts described, and every sequence stands where it should. Enters the
    step into the book, and says what disagrees; to be iterated to its end.

    Args:
        injected: rows that the engine failed on purpose.
        session: None where it has ended.
    """
    reasons = watched.new_failures(reply)
    own = reasons.total() - reasons[Reason.BLOCK_UNFILLED]
    by_themselves = own - reasons[Reason.MASK_EMPTY]
    spoilt = any(sequence.failed for sequence in watched.decodes + watched.items)
    if len(reply.token_ids) != len(watched.decodes):
        yield "another number of tokens"
    yield from _decodes(watched, reply, foretold)
    for item, sequence, result in zip(watched.step.items, watched.items, reply.items, strict=True):
        yield from _item(item, sequence, result, watched.masks.get(item.sequence_id), foretold)
    # A row may have been poisoned whose sequence had failed already; and what was accepted before a
    # failure was known may share or copy what it spoilt.
    late = session is not None and session.failures > watched.failures
    if not (by_themselves == injected or (spoilt and by_themselves < injected) or late):
        yield f"P6: {by_themselves} sequences failed, not {injected}"
    if reasons[Reason.BLOCK_UNFILLED] and not own and not late:
        yield f"P6: {reasons[Reason.BLOCK_UNFILLED]} failed with none that did"
    if session is not None:
        session.failures += own


def _decodes(watched: WatchedStep, reply: StepReply, foretold: Foretold) -> Iterator[str]:
    details = {each.sequence_id: each.row for each in reply.details}
    decodes = zip(watched.step.decode_ids, watched.decodes, reply.token_ids, strict=False)
    for sequence_id, sequence, token in decodes:
        mask = watched.masks.get(sequence_id)
        row = details.get(sequence_id)
        if row is not None and row.failure is not None:
            if token != FAILED_TOKEN:
                yield f"a failed sequence has token {token}"
            yield from _failure(sequence, row, (), mask, foretold)
            continue
        if sequence.failed or token == FAILED_TOKEN:
            yield "a failed sequence went on"
        sequence.position = len(sequence.tokens)
        yield from _sampled(sequence, token, mask, 0, foretold)


def _item(
    item: Item, sequence: WatchedSequence, result: ItemReply, mask: Mask | None, foretold: Foretold
) -> Iterator[str]:
    row = result.row
    if row.failure is not None:
        # Explicit tokens of a failed item count for nothing, so its rows can't be foretold.
        drafts = None if item.source is TokenSource.EXPLICIT else item.draft_tokens
        yield from _failure(sequence, row, drafts, mask, foretold)
        return
    if sequence.failed:
        yield "a failed sequence went on"
    yield from _position(item, sequence, result)
    if not item.row_count:
        return
    start = result.position - item.row_count - len(row.accepted)
    if item.source is TokenSource.EXPLICIT:
        sequence.tokens[start:] = item.token_ids
        sequence.prompt_left = min(sequence.prompt_left, start)
    yield from _prompt(item, sequence, row, start, foretold)
    yield from _drafts(item.draft_tokens, row)
    for index, sampled in enumerate((*row.accepted, row) if item.sample else ()):
        yield from _sampled(sequence, sampled.token, mask, index, foretold)


def _position(item: Item, sequence: WatchedSequence, result: ItemReply) -> Iterator[str]:
    """Where it stands: behind its rows and the accepted drafts, from where it stood or was told."""
    start = 0 if item.replace is not None else sequence.position
    if item.start_position is not None:
        start = item.start_position
    sequence.position = result.position
    if start is not None:
        wanted = start + item.row_count + len(result.row.accepted)
        if result.position != wanted:
            yield f"V8: a sequence stands at {result.position}, not {wanted}"


def _drafts(drafts: Sequence[int], row: SampledRow) -> Iterator[str]:
    """Drafts are accepted up to the first that is not the token drawn, and no further."""
    accepted = [each.token for each in row.accepted]
    if accepted != list(drafts[: len(accepted)]):
        yield "V8: what was accepted was no draft"
    if len(accepted) < len(drafts) and row.token == drafts[len(accepted)]:
        yield "V8: a draft that is right was not accepted"


def _prompt(
    item: Item, sequence: WatchedSequence, row: SampledRow, start: int, foretold: Foretold
) -> Iterator[str]:
    """The prompt tokens behind the rows are described, no other."""
    if sequence.prompt_top is None:
        if row.prompt is not None:
            yield "V8: prompt logprobs that nobody asked for"
        return
    last = min(start + item.row_count, min(sequence.prompt_count, len(sequence.tokens)) - 1)
    wanted = list(range(start + 1, last + 1))
    if row.prompt is None:
        if wanted:
            yield f"V8: no prompt logprobs of {len(wanted)} tokens"
        return
    prompt = row.prompt
    first, count = prompt.first_position, len(prompt.ranks)
    if not count or list(range(first, first + count)) != wanted:
        yield f"V8: prompt logprobs of {count} tokens from {first}, not of {wanted}"
    elif prompt.top_count != sequence.prompt_top or foretold.differs(prompt, sequence.tokens):
        yield f"V8: prompt logprobs from {first} are not the model's"


def _failure(
    sequence: WatchedSequence,
    row: SampledRow,
    drafts: Sequence[int] | None,
    mask: Mask | None,
    foretold: Foretold,
) -> Iterator[str]:
    """A sequence fails for its mask only where that allows nothing, in a row that is sampled from
    where that can be told: not without `drafts`."""
    assert row.failure is not None
    if row.failure.reason is Reason.MASK_EMPTY and not sequence.failed:
        rows = range(0 if mask is None else mask.row_count)
        if mask is None or all(allowed_bits(mask, index) for index in rows):
            yield "V8: MASK_EMPTY, and every row allows a token"
        elif drafts is None or not sequence.rules_known:
            pass
        elif not _meets_nothing(sequence, drafts, mask, foretold):
            yield "V8: MASK_EMPTY, and no row that is sampled from allows nothing"
    sequence.failed = True


def _meets_nothing(
    sequence: WatchedSequence, drafts: Sequence[int], mask: Mask, foretold: Foretold
) -> bool:
    """Whether the first draft that is not accepted, or the last row, has nothing to sample from."""
    tokens = list(sequence.tokens)
    for index in range(1 + len(drafts)):
        token = foretold.after(sequence, tokens, mask, index)
        if token is None:
            return True
        if token != (drafts[index] if index < len(drafts) else None):
            return False
        tokens.append(token)
    return False


def _sampled(
    sequence: WatchedSequence,
    token: int | None,
    mask: Mask | None,
    row: int,
    foretold: Foretold,
) -> Iterator[str]:
    assert token is not None
    if mask is not None and not is_allowed(mask, row, token):
        yield f"V8: token {token} is not allowed"
    if sequence.rules_known:
        wanted = foretold.after(sequence, sequence.tokens, mask, row)
        if token != wanted:
            yield f"V8: token {token}, not {wanted}"
    sequence.tokens.append(token)
