"""Checks of a step's rows: positions, tokens, and every slot that they read or write."""

from __future__ import annotations

from mlxrt.core.block import Block, Table
from mlxrt.core.bounds import Bounds
from mlxrt.core.draft import Draft
from mlxrt.core.sequence import Sequence
from mlxrt.core.step import Item, TokenSource
from mlxrt.core.table_checks import check_tokens
from mlxrt.core.ticket import ItemRun, Read
from mlxrt.errors import MlxrtError, Reason, field_error, field_invalid, limit_exceeded


class Place:
    """Where one decode id or one item stands in the step, and its fields in the request.

    Attributes:
        index: among the items, -1 for a decode id: the rows of those stand before all items'.
    """

    __slots__ = ("_is_item", "_path", "index")

    def __init__(self, index: int, *, is_item: bool) -> None:
        """`index` among the items or among the decode ids."""
        self._path = f"{'items' if is_item else 'decode_sequence_ids'}[{index}]"
        self._is_item = is_item
        self.index = index if is_item else -1

    def field(self, name: str) -> str:
        """Path of one field of an item; a decode id has no fields, so it is at fault itself."""
        return f"{self._path}.{name}" if self._is_item else self._path


def check_shape(item: Item, place: Place, bounds: Bounds) -> None:
    """Refuses an item whose fields contradict one another, whatever the state."""
    changes = item.append is not None or item.replace is not None or bool(item.leading_holes)
    if item.row_count < 0:
        raise field_invalid(place.field("row_count"), "must not be negative")
    if item.row_count == 0:
        if not changes:
            raise field_invalid(place.field("row_count"), "an item needs rows or a table change")
        for name, given in (
            ("tokens", item.source is not None),
            ("start_position", item.start_position is not None),
            ("sample", item.sample),
            ("return_logits", item.return_logits),
            ("draft_token_ids", bool(item.draft_tokens)),
        ):
            if given:
                raise field_invalid(place.field(name), "needs rows")
        return
    if item.source is None:
        raise field_invalid(place.field("tokens"), "rows need a source of tokens")
    if item.source is TokenSource.EXPLICIT:
        path = place.field("explicit.token_ids")
        if len(item.token_ids) != item.row_count:
            raise field_invalid(
                path, f"must have as many tokens as the item has rows, {item.row_count}"
            )
        check_tokens(item.token_ids, bounds, path)
    if item.source is TokenSource.LAST_SAMPLED and item.row_count != 1:
        raise field_invalid(place.field("row_count"), "last_sampled takes exactly one row")
    if item.draft_tokens:
        _check_drafts(item, place, bounds)


def _check_drafts(item: Item, place: Place, bounds: Bounds) -> None:
    path = place.field("draft_token_ids")
    check_tokens(item.draft_tokens, bounds, path)
    if not item.sample:
        raise field_invalid(path, "drafts are verified by sampling: set sample")
    if item.return_logits:
        raise field_invalid(place.field("return_logits"), "not together with drafts")


def check_item_rows(draft: Draft, run: ItemRun, item: Item, place: Place, bounds: Bounds) -> None:
    """Fixes the rows of `run` and refuses what the state does not allow."""
    sequence = run.sequence
    change = draft.changes.get(sequence)
    stands = 0 if change is not None and change.replaced else sequence.planned
    run.position = stands
    if item.row_count == 0:
        return
    _check_settled(sequence, place.field("row_count"))
    if item.start_position is None and change is not None and change.replaced:
        raise _misplaced(place.field("start_position"), "required where the tables are replaced")
    start = stands if item.start_position is None else item.start_position
    known = sequence.known
    if start < 0 or (start > stands and start > known - 1):
        raise _misplaced(
            place.field("start_position"),
            f"{start} is past the last known token; the sequence stands at {stands}, "
            f"{known} tokens are known",
        )
    end = start + item.row_count
    if end > bounds.max_length:
        raise limit_exceeded("max_model_length", bounds.max_length, end, place.field("row_count"))
    if item.source is TokenSource.EXPLICIT:
        known = end
        run.token_ids = item.token_ids
    elif end > known:
        raise _misplaced(
            place.field("row_count"),
            f"rows to position {end - 1}, but only {known} tokens are known",
        )
    if item.source is TokenSource.LAST_SAMPLED:
        _check_last_sampled(sequence, start, place.field("last_sampled"))
    if item.sample:
        _check_sample(end, known, place.field("sample"), bounds)
    drafts = len(item.draft_tokens)
    if drafts and known + drafts + 1 > bounds.max_length:
        raise limit_exceeded(
            "max_model_length",
            bounds.max_length,
            known + drafts + 1,
            place.field("draft_token_ids"),
        )
    run.start, run.count, run.position = start, item.row_count, end
    run.sample, run.return_logits = item.sample, item.return_logits
    run.draft_tokens = item.draft_tokens
    if sequence.prompt_top is not None:
        # The row of position p describes the token of position p + 1.
        described = min(end, min(sequence.prompt_count, known) - 1) - start
        run.prompt_rows = max(0, described)
    check_slots(draft, sequence, start, item.row_count, place, bounds, drafts)


def check_decode(draft: Draft, sequence: Sequence, place: Place, bounds: Bounds) -> None:
    """Checks a decode id that may not take the plain path."""
    start = sequence.planned
    _check_settled(sequence, place.field(""))
    _check_last_sampled(sequence, start, place.field(""))
    _check_sample(start + 1, sequence.known, place.field(""), bounds)
    check_slots(draft, sequence, start, 1, place, bounds)


def _check_last_sampled(sequence: Sequence, start: int, path: str) -> None:
    if not sequence.given:
        raise _misplaced(path, "the sequence has sampled no token yet")
    if start != sequence.known - 1:
        raise _misplaced(
            path, f"the last token has position {sequence.known - 1}, the row has {start}"
        )


def _check_settled(sequence: Sequence, path: str) -> None:
    if sequence.unsettled:
        raise field_error(
            Reason.POSITION_UNKNOWN,
            path,
            f"a step in flight verifies drafts of sequence {sequence.sequence_id}: wait for its "
            "answer",
        )


def _check_sample(end: int, known: int, path: str, bounds: Bounds) -> None:
    if end != known:
        raise _misplaced(path, f"the rows end at {end}, before the last of {known} known tokens")
    if known + 1 > bounds.max_length:
        raise limit_exceeded("max_model_length", bounds.max_length, known + 1, path)


def check_slots(
    draft: Draft,
    sequence: Sequence,
    start: int,
    count: int,
    place: Place,
    bounds: Bounds,
    draft_count: int = 0,
) -> None:
    """Checks every slot that the rows read or write, `draft_count` more among them, and puts the
    writes, and what was not known to be computed of the reads, into the draft.
    """
    change = draft.changes.get(sequence)
    changed = change is not None and (change.replaced or change.pierced)
    trusted = sequence.verified and not changed and not draft.distrust and start <= sequence.planned
    size = bounds.block_size
    for group, table in enumerate(draft.tables(sequence)):
        first = bounds.first_read(group, start)
        if first < start and not (trusted and sequence.checked_from[group] <= first):
            _check_reads(draft, table, group, first, start, place, size)
            draft.reads.append(Read(sequence, table, first, start))
        end = start + count
        blocks = _check_writes(draft, table, group, start, end + draft_count, place, size)
        for base, block in blocks:
            lowest, written = max(start - base, 0), min(end - base, size)
            drafted = draft_count > 0 and written < size
            if draft.ref_count(block) != 1:
                if drafted:
                    raise _shared(place.field("draft_token_ids"), group, block)
                draft.compute(block, lowest, written)
            draft.writes.append((sequence, block, lowest, written, base, drafted))


def _check_reads(
    draft: Draft, table: Table, group: int, first: int, end: int, place: Place, block_size: int
) -> None:
    """Positions `first` to `end - 1` must be computed."""
    for index in range(first // block_size, -(-end // block_size)):
        path = place.field("start_position")
        if index >= len(table):
            raise _too_short(path, group, index * block_size, len(table))
        block = table[index]
        if block is None:
            raise _hole(path, group, index, "read")
        needed = min(block_size, end - index * block_size)
        if draft.filled(block) < needed:
            raise field_error(
                Reason.BLOCK_UNFILLED,
                path,
                f"block {block.block_id} of group {group}, entry {index}, is computed for "
                f"{draft.filled(block)} positions; the rows read {needed}",
            )


def _check_writes(
    draft: Draft,
    table: Table,
    group: int,
    start: int,
    end: int,
    place: Place,
    block_size: int,
) -> list[tuple[int, Block]]:
    """The slots of positions `start` to `end - 1` must be this table's alone, or taken by tables
    whose rows stand behind; answers their blocks, each with the position of its first slot.
    """
    blocks: list[tuple[int, Block]] = []
    for index in range(start // block_size, (end - 1) // block_size + 1):
        path = place.field("row_count")
        if index >= len(table):
            raise _too_short(path, group, max(start, index * block_size), len(table))
        block = table[index]
        if block is None:
            raise _hole(path, group, index, "write")
        if not draft.may_write(block, place.index):
            raise _shared(path, group, block)
        blocks.append((index * block_size, block))
    return blocks


def _misplaced(path: str, description: str) -> MlxrtError:
    return field_error(Reason.POSITION_INVALID, path, description)


def _too_short(path: str, group: int, position: int, length: int) -> MlxrtError:
    return field_error(
        Reason.TABLE_TOO_SHORT,
        path,
        f"position {position} is past the {length} entries of group {group}'s table",
    )


def _hole(path: str, group: int, index: int, verb: str) -> MlxrtError:
    return field_error(
        Reason.BLOCK_HOLE,
        path,
        f"the rows {verb} entry {index} of group {group}'s table, which is a hole",
    )


def _shared(path: str, group: int, block: Block) -> MlxrtError:
    return field_error(
        Reason.BLOCK_SHARED,
        path,
        f"the rows write block {block.block_id} of group {group}, which tables name twice",
    )
