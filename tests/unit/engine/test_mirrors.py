"""The engine's memory of sequences: lines reused, codes resolved, overwrites taken back."""

from __future__ import annotations

import numpy as np

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.batch import apply_changes, build_batch, padded, undo_batch
from mlxrt.engine.engine_config import default_buckets
from mlxrt.engine.mirrors import SequenceMirrors, decode_pending, encode_pending, resolve_before

BLOCK_SIZE = 4


def mirrors_with(*sequences: tuple[int, list[int], list[int]]) -> SequenceMirrors:
    """Mirrors that know `(handle, prompt, blocks)`."""
    mirrors = SequenceMirrors(group_count=1, vocabulary_size=64)
    plan = StepPlan(1)
    for handle, prompt, blocks in sequences:
        plan.registrations.append(Registration(handle, prompt, GREEDY, 0))
        plan.table_updates.append(TableUpdate(handle, 0, 0, blocks, len(blocks)))
    apply_changes(plan, mirrors)
    return mirrors


def test_codes_of_two_steps_never_meet():
    indices = np.arange(1000)
    codes = [encode_pending(indices, parity) for parity in (0, 1)]
    assert not set(codes[0].tolist()) & set(codes[1].tolist())
    assert all((code < 0).all() for code in codes)
    for parity in (0, 1):
        assert np.array_equal(decode_pending(codes[parity], parity), indices)


def test_layout_of_a_mixed_step():
    mirrors = mirrors_with((1, [10, 11, 12], [7]), (2, [20, 21, 22, 23, 24, 25], [3, 5]))
    plan = StepPlan(
        2,
        decode_handles=[1],
        decode_starts=[2],
        entries=[Entry(2, 1, 4, TokenSource.REGISTERED)],
    )
    batch = build_batch(plan, mirrors, BLOCK_SIZE, (8,), parity=0)
    assert batch.tokens.tolist() == [12, 21, 22, 23, 24, 0, 0, 0]
    rows = batch.groups[0]
    assert rows.positions.tolist() == [2, 1, 2, 3, 4, 0, 0, 0]
    assert rows.slots.tolist() == [30, 13, 14, 15, 20, -1, -1, -1]
    assert rows.query_start.tolist() == [0, 1, 5]
    assert rows.context_len.tolist() == [3, 5]
    assert rows.block_tables.tolist() == [[7, 0], [3, 5]]
    assert batch.selected_rows.tolist() == [0]
    assert batch.selection.of_entry == [-1]


def test_a_code_is_resolved_only_where_it_still_stands():
    mirrors = mirrors_with((1, [1, 2], [4]), (2, [5], [6]))
    decode = StepPlan(2, decode_handles=[1, 2], decode_starts=[1, 0])
    batch = build_batch(decode, mirrors, BLOCK_SIZE, (), parity=1)
    assert batch.selected_rows is None
    # Sequence 1 goes; its line serves another, whose prompt lies where the token was expected.
    apply_changes(
        StepPlan(3, retired=[1], registrations=[Registration(9, [7, 7, 7, 7], GREEDY, 0)]), mirrors
    )
    mirrors.resolve(batch.pending, batch.codes, np.array([40, 41], np.int32))
    assert mirrors.tokens[mirrors.lines_of([9])[0], :4].tolist() == [7, 7, 7, 7]
    assert mirrors.tokens[mirrors.lines_of([2])[0], 1] == 41


def test_undo_puts_back_what_has_been_read_meanwhile():
    mirrors = mirrors_with((1, [1, 2], [4]))
    line = mirrors.lines_of([1])[0]
    first = build_batch(StepPlan(2, decode_handles=[1], decode_starts=[1]), mirrors, 4, (), 0)
    entry = Entry(1, 1, 2, TokenSource.EXPLICIT, [8, 9], sample=True)
    second = build_batch(StepPlan(3, entries=[entry]), mirrors, 4, (), 1)
    assert mirrors.tokens[line, :3].tolist() == [1, 8, 9]
    read = np.array([50], np.int32)
    mirrors.resolve(first.pending, first.codes, read)
    for overwrite in (second.pending, *second.overwrites):
        resolve_before(overwrite, first.parity, read)
    undo_batch(second, mirrors)
    assert mirrors.tokens[line, :3].tolist() == [1, 2, 50]


def test_many_sequences_and_long_ones():
    prompts = {handle: [handle % 50] * (handle * 3 + 1) for handle in range(1, 200)}
    mirrors = mirrors_with(*((h, p, [h] * (len(p) // 4 + 1)) for h, p in prompts.items()))
    for handle, prompt in prompts.items():
        line = mirrors.lines_of([handle])[0]
        assert mirrors.tokens[line, : len(prompt)].tolist() == prompt
        assert mirrors.tables[0][line, len(prompt) // 4] == handle
    for handle in prompts:
        mirrors.retire(handle)
        mirrors.retire(handle)
    assert len(mirrors) == 0


def test_a_successor_starts_with_an_empty_table_and_its_own_rules():
    mirrors = mirrors_with((1, [1], [4, 5, 6]))
    line = mirrors.lines_of([1])[0]
    rules = Sampling(temperature=1.0)
    apply_changes(
        StepPlan(2, retired=[1], registrations=[Registration(2, [3], rules, 77)]), mirrors
    )
    assert mirrors.lines_of([2])[0] == line
    assert not mirrors.tables[0][line].any()
    assert (mirrors.sampling[line].sampling, mirrors.sampling[line].seed) == (rules, 77)
    apply_changes(
        StepPlan(3, retired=[2], registrations=[Registration(3, [3], GREEDY, 0)]), mirrors
    )
    assert mirrors.sampling[line] is None


def test_buckets():
    buckets = default_buckets(300)
    assert buckets == (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320)
    assert [padded(n, buckets) for n in (1, 3, 65, 300, 320, 400)] == [1, 4, 128, 320, 320, 400]
    assert padded(7, ()) == 7
