"""Checks of a step's registrations and table changes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Row

from mlxrt.core.block import Table, block_ids
from mlxrt.core.bounds import Bounds
from mlxrt.core.draft import Draft, TableChange
from mlxrt.core.seeds import derived_seed
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.step import Item, NewSequence
from mlxrt.errors import Reason, field_error, field_invalid, limit_exceeded


def check_tokens(tokens: Row[int], bounds: Bounds, path: str) -> None:
    """Refuses a token that is not of the vocabulary."""
    if tokens and (max(tokens) >= bounds.vocabulary_size or min(tokens) < 0):
        size = bounds.vocabulary_size
        index = next(i for i, token in enumerate(tokens) if not 0 <= token < size)
        raise field_invalid(f"{path}[{index}]", f"must be below the vocabulary size, {size}")


def resolve_tables(
    session: Session, tables: Mapping[int, Row[int]], bounds: Bounds, path: str
) -> dict[int, Table]:
    """The tables with blocks in place of ids, by group; refuses what is not leased to the
    session.
    """
    resolved: dict[int, Table] = {}
    for position, (group, ids) in enumerate(tables.items()):
        place = f"{path}[{position}]"
        if not 0 <= group < bounds.group_count:
            raise field_invalid(f"{place}.group", f"must be below {bounds.group_count}")
        leased = session.blocks[group]
        table: Table = []
        for index, block_id in enumerate(ids):
            block = leased.get(block_id)
            if block is None and block_id != 0:
                raise unleased(bounds, group, block_id, f"{place}.block_ids[{index}]")
            table.append(block)
        resolved[group] = table
    return resolved


def unleased(bounds: Bounds, group: int, block_id: int, path: str) -> Exception:
    """The refusal of a block id that is not the session's."""
    count = bounds.block_counts[group]
    if not 0 <= block_id < count:
        return field_invalid(path, f"group {group} has block ids below {count}")
    return field_error(
        Reason.BLOCK_NOT_LEASED,
        path,
        f"block {block_id} of group {group} is not leased to this session",
    )


def check_releases(draft: Draft, sequence_ids: Row[int]) -> None:
    """Takes the sequences out of the draft."""
    for index, sequence_id in enumerate(sequence_ids):
        path = f"release_sequence_ids[{index}]"
        if sequence_id in draft.released:
            raise field_invalid(path, f"sequence {sequence_id} is released twice")
        sequence = draft.session.sequences.get(sequence_id)
        if sequence is None:
            raise field_error(Reason.SEQUENCE_UNKNOWN, path, f"no sequence {sequence_id}")
        draft.released[sequence_id] = sequence
        for table in sequence.tables:
            draft.drop_refs(table)


def check_registrations(draft: Draft, news: Row[NewSequence], bounds: Bounds) -> None:
    """Puts the sequences into the draft."""
    session = draft.session
    total = len(session.sequences) - len(draft.released) + len(news)
    if news and total > bounds.limits.max_sequences:
        raise limit_exceeded("max_sequences", bounds.limits.max_sequences, total, "new_sequences")
    for index, new in enumerate(news):
        path = f"new_sequences[{index}]"
        if draft.sequence(new.sequence_id) is not None:
            raise field_error(
                Reason.SEQUENCE_EXISTS,
                f"{path}.sequence_id",
                f"sequence {new.sequence_id} is registered",
            )
        prompt_path = f"{path}.prompt_token_ids"
        if not new.prompt:
            raise field_invalid(prompt_path, "must have at least one token")
        if len(new.prompt) > bounds.max_length:
            raise limit_exceeded(
                "max_model_length", bounds.max_length, len(new.prompt), prompt_path
            )
        check_tokens(new.prompt, bounds, prompt_path)
        resolved = resolve_tables(session, new.tables, bounds, f"{path}.tables")
        tables = [resolved.get(group, []) for group in range(bounds.group_count)]
        _check_lengths(tables, bounds, f"{path}.tables")
        for table in tables:
            draft.add_refs(table)
        seed = derived_seed(session.seed, new.sequence_id) if new.seed is None else new.seed
        sequence = Sequence(new.sequence_id, new.prompt, tables, new.sampling, seed)
        sequence.prompt_top = new.prompt_top_logprobs
        draft.registered[new.sequence_id] = sequence


def check_table_change(
    draft: Draft, sequence: Sequence, item: Item, path: str, bounds: Bounds
) -> None:
    """Puts the item's new tables into the draft."""
    if item.append is not None and item.replace is not None:
        raise field_invalid(f"{path}.replace", "an item appends or replaces, not both")
    if item.append is None and item.replace is None and not item.leading_holes:
        return
    change = TableChange([list(table) for table in sequence.tables])
    if item.replace is not None:
        _replace(
            draft,
            change,
            resolve_tables(draft.session, item.replace, bounds, f"{path}.replace.tables"),
        )
        _check_lengths(change.tables, bounds, f"{path}.replace.tables")
    elif item.append is not None:
        _append(
            draft,
            change,
            resolve_tables(draft.session, item.append, bounds, f"{path}.append.tables"),
        )
        _check_lengths(change.tables, bounds, f"{path}.append.tables")
    if item.leading_holes:
        _pierce(draft, change, item.leading_holes, bounds, f"{path}.leading_holes")
    draft.changes[sequence] = change


def _replace(draft: Draft, change: TableChange, resolved: dict[int, Table]) -> None:
    change.replaced = True
    for group, old in enumerate(change.tables):
        new = resolved.get(group, [])
        draft.drop_refs(old)
        draft.add_refs(new)
        change.tables[group] = new
        change.updates.append((group, 0, block_ids(new), len(new)))


def _append(draft: Draft, change: TableChange, resolved: dict[int, Table]) -> None:
    for group, new in resolved.items():
        table = change.tables[group]
        first = len(table)
        draft.add_refs(new)
        table.extend(new)
        if new:
            change.updates.append((group, first, block_ids(new), len(table)))


def _pierce(
    draft: Draft, change: TableChange, holes: Mapping[int, int], bounds: Bounds, path: str
) -> None:
    for position, (group, count) in enumerate(holes.items()):
        if not 0 <= group < bounds.group_count:
            raise field_invalid(f"{path}[{position}].group", f"must be below {bounds.group_count}")
        table = change.tables[group]
        if not 0 <= count <= len(table):
            raise field_invalid(f"{path}[{position}].count", f"the table has {len(table)} entries")
        first = next((i for i in range(count) if table[i] is not None), count)
        if first < count:
            draft.drop_refs(table[first:count])
            table[first:count] = [None] * (count - first)
            change.updates.append((group, first, [0] * (count - first), len(table)))
            change.pierced = True


def _check_lengths(tables: list[Table], bounds: Bounds, path: str) -> None:
    longest = max(map(len, tables))
    if longest > bounds.max_table_length:
        raise limit_exceeded(
            "max_model_length", bounds.max_length, longest * bounds.block_size, path
        )
