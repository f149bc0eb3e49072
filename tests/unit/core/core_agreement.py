"""Whether the core and the model of it are in the same state."""

from __future__ import annotations

from core_model import SessionModel

from mlxrt.core.answers import SessionRef
from mlxrt.core.core import Core


def same_session(core: Core, ref: SessionRef, now_ms: int, session: SessionModel) -> None:
    """What GetSession shows."""
    snapshot = core.get_session(ref, now_ms, include_tables=True, include_tokens=True)
    view = session.committed()
    assert snapshot.next_step_number == session.next_step_number
    assert list(snapshot.inflight_step_numbers) == session.inflight_numbers
    leased = {(g, b) for g, ids in snapshot.leased_blocks.items() for b in ids}
    assert leased == set(view.blocks)
    assert [each.sequence_id for each in snapshot.sequences] == sorted(view.sequences)
    for each in snapshot.sequences:
        known = view.sequences[each.sequence_id]
        assert each.position == known.position, f"{ref}: sequence {each.sequence_id}"
        assert list(each.token_ids) == known.tokens
        assert each.token_count == len(known.tokens)
        assert each.tables == {g: table for g, table in enumerate(known.tables) if table}
        assert (each.failure is not None) == known.failed


def same_plans(core: Core, name: str, session: SessionModel) -> None:
    """What the core counts on, were every accepted step to commit."""
    planned = session.planned()
    held = core._state.sessions[name]
    filled = {(b.group, b.block_id): b.filled for group in held.blocks for b in group.values()}
    expected = {key: len(contents) for key, contents in planned.blocks.items()}
    assert filled == expected, dict(filled.items() ^ expected.items())
    for sequence_id, known in planned.sequences.items():
        sequence = held.sequences[sequence_id]
        assert sequence.planned == known.position
        assert sequence.known == len(known.tokens)
        assert sequence.given == known.given
