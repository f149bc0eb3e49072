"""Leasing and freeing blocks, and releasing sequences, outside a step."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Row

from mlxrt.core.block import Block
from mlxrt.core.session import Session
from mlxrt.core.state import State
from mlxrt.core.table_checks import unleased
from mlxrt.errors import MlxrtError, Reason, field_error, field_invalid

_BLOCKS_RETRY_MS = 50


def allocate(
    state: State, session: Session, request_id: str, counts: Mapping[int, int]
) -> dict[int, list[int]]:
    """As Core.allocate_blocks."""
    content = ("allocate", tuple(counts.items()))
    answer: dict[int, list[int]] | None = session.requests.find(request_id, content)
    if answer is not None:
        return answer
    for position, (group, count) in enumerate(counts.items()):
        _check_group(state, group, f"counts[{position}].group")
        if count < 1:
            raise field_invalid(f"counts[{position}].count", "must be at least 1")
        free = state.pool.free_count(group)
        if count > free:
            capacity = state.pool.capacities[group]
            raise MlxrtError(
                Reason.NO_FREE_BLOCKS,
                f"group {group} has {free} free blocks, not {count}",
                metadata={"group": str(group), "free": str(free), "wanted": str(count)},
                retry_delay_ms=_BLOCKS_RETRY_MS if count <= capacity else None,
            )
    answer = {}
    for group, count in counts.items():
        ids = answer[group] = state.pool.take(group, count)
        session.blocks[group].update((block_id, Block(group, block_id)) for block_id in ids)
        state.counters.blocks_allocated += count
    session.requests.store(request_id, content, answer)
    return answer


def free(
    state: State, session: Session, request_id: str, blocks: Mapping[int, Row[int]]
) -> tuple[int, ...]:
    """As Core.free_blocks."""
    content = ("free", tuple((group, tuple(ids)) for group, ids in blocks.items()))
    answer: tuple[int, ...] | None = session.requests.find(request_id, content)
    if answer is not None:
        return answer
    for position, (group, ids) in enumerate(blocks.items()):
        _check_group(state, group, f"blocks[{position}].group")
        _check_free(state, session, group, ids, f"blocks[{position}].block_ids")
    state.give_back(
        session,
        [(group, block_id) for group, ids in blocks.items() for block_id in ids],
        "free_blocks",
    )
    answer = state.pool.free_counts()
    session.requests.store(request_id, content, answer)
    return answer


def free_sequences(
    state: State, session: Session, request_id: str, sequence_ids: Row[int], *, free_blocks: bool
) -> dict[int, list[int]]:
    """As Core.free_sequences."""
    content = ("free_sequences", tuple(sequence_ids), free_blocks)
    answer: dict[int, list[int]] | None = session.requests.find(request_id, content)
    if answer is not None:
        return answer
    if not sequence_ids:
        raise field_invalid("sequence_ids", "must have at least one")
    seen: set[int] = set()
    for index, sequence_id in enumerate(sequence_ids):
        path = f"sequence_ids[{index}]"
        if sequence_id in seen:
            raise field_invalid(path, f"sequence {sequence_id} stands in it twice")
        seen.add(sequence_id)
        if sequence_id not in session.sequences:
            raise field_error(Reason.SEQUENCE_UNKNOWN, path, f"no sequence {sequence_id}")
    released = [session.sequences.pop(sequence_id) for sequence_id in sequence_ids]
    state.retire(session, released)
    named: dict[Block, None] = {}
    for sequence in released:
        session.unname(sequence.tables)
        for table in sequence.tables:
            named.update((block, None) for block in table if block is not None)
    answer = {}
    if free_blocks:
        gone = [(block.group, block.block_id) for block in named if block.refs == 0]
        state.give_back(session, gone, "free_sequences")
        for group, block_id in sorted(gone):
            answer.setdefault(group, []).append(block_id)
    session.requests.store(request_id, content, answer)
    return answer


def _check_group(state: State, group: int, path: str) -> None:
    if not 0 <= group < state.bounds.group_count:
        raise field_invalid(path, f"must be below {state.bounds.group_count}")


def _check_free(state: State, session: Session, group: int, ids: Row[int], path: str) -> None:
    seen: set[int] = set()
    for index, block_id in enumerate(ids):
        if block_id == 0:
            raise field_invalid(f"{path}[{index}]", "block 0 is never leased")
        if block_id in seen:
            raise field_invalid(f"{path}[{index}]", f"block {block_id} stands in it twice")
        seen.add(block_id)
        block = session.blocks[group].get(block_id)
        if block is None:
            raise unleased(state.bounds, group, block_id, f"{path}[{index}]")
        if block.refs:
            raise field_error(
                Reason.BLOCK_IN_USE,
                f"{path}[{index}]",
                f"{block.refs} table entries name block {block_id} of group {group}",
            )
