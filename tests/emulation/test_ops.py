"""The plan of the Metal host, run on the emulator, against the plain-MLX reference and the CPU."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from emulator import Fault, Machine, Order
from emulator.ops import Plan, Unserved, plan, run_plan

from mlxrt import kernels
from mlxrt.check import kernel_cases
from mlxrt.check.kernel_cases import AttentionCall, AttentionCase
from mlxrt.kernels import reference

ELEMENTS = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
KEYS = [
    (64, mx.float32, 1, 0.0), (64, mx.float16, 8, 30.0), (80, mx.bfloat16, 4, 0.0),
    (96, mx.float16, 3, 0.0), (112, mx.float32, 2, 1.5), (128, mx.bfloat16, 2, 0.0),
    (128, mx.float16, 7, 0.0), (128, mx.float32, 4, 0.0), (192, mx.bfloat16, 5, 30.0),
    (256, mx.float16, 6, 0.0), (256, mx.float32, 8, 0.0),
]  # fmt: skip
"""Head size, type, query heads per KV head, soft-cap: what the text is made for."""
DRAWS = 4
PART_SIZE = 9
"""Place of the member in AttentionParams."""
SMALL = AttentionCase((70, 9, 1), (1, 5, 1), 2, 2, 64, 16, mx.float16, padding_rows=2)


def raw(array: mx.array) -> np.ndarray:
    """Returns the bits as numpy holds them: bfloat16 as uint16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def cooked(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """Returns what `raw` took apart."""
    return mx.array(array).view(dtype) if dtype == mx.bfloat16 else mx.array(array)


def attention_plan(call: AttentionCall, cores: int = 1000) -> Plan:
    """Returns the Metal host's plan for a call; for many cores contexts are cut into parts."""
    q, k_pool, _, tables, _, contexts = call.arrays
    shape = {
        "element": ELEMENTS[q.dtype], "head_dim": q.shape[2], "num_q_heads": q.shape[1],
        "num_kv_heads": k_pool.shape[2], "block_size": k_pool.shape[1],
        "num_blocks": k_pool.shape[0], "max_blocks": tables.shape[1],
        "num_sequences": contexts.shape[0], "num_rows": q.shape[0], "window": call.window,
        "has_sinks": int(call.sinks is not None), "scale": call.scale, "softcap": call.softcap,
        "cores": cores,
    }  # fmt: skip
    return plan("paged_attention", *shape.items())


def emulated(
    call: AttentionCall, order: Order, seed: int = 0, what: Plan | None = None
) -> mx.array:
    """Returns what the emulator computes for a call."""
    inputs = [raw(array) for array in call.arrays]
    if call.sinks is not None:
        inputs.append(raw(call.sinks))
    what = what or attention_plan(call)
    (out,) = run_plan(Machine(order, seed), what, inputs, [inputs[0]])
    return cooked(out, call.arrays[0].dtype)


def drawn(key: tuple[int, mx.Dtype, int, float], seed: int) -> AttentionCase:
    """Draws a case that the key's texts serve."""
    head_dim, dtype, group, softcap = key
    rng = np.random.default_rng(seed)
    case = kernel_cases.draw_attention(
        rng, context_max=(20, 90, 270)[seed % 3], rows_max=12, head_dims=[head_dim],
        dtypes=[dtype], groups=[group],
    )  # fmt: skip
    return dataclasses.replace(case, softcap=softcap, num_kv_heads=min(case.num_kv_heads, 2))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_attention_of_any_shape(key: tuple[int, mx.Dtype, int, float]) -> None:
    for draw in range(DRAWS):
        seed = KEYS.index(key) * DRAWS + draw
        case = drawn(key, seed)
        call = kernel_cases.build_attention(case)
        actual = emulated(call, Order(draw % 4), seed)
        assert kernel_cases.excess(actual, call.run(reference.paged_attention)) <= 1, case
        assert kernel_cases.excess(actual, call.run(kernels.paged_attention)) <= 1, case


def test_the_draws_reach_every_branch() -> None:
    """Else the test above would prove less than it says."""
    cases = [drawn(key, KEYS.index(key) * DRAWS + d) for key in KEYS for d in range(DRAWS)]
    merged = {False: 0, True: 0}
    for case in cases:
        what = attention_plan(kernel_cases.build_attention(case))
        for dispatch in what.dispatches:
            size = np.frombuffer(dispatch.params, np.int32)[PART_SIZE]
            for rows, context in zip(case.rows, case.contexts, strict=True):
                seen = min(context, case.window or context)
                if dispatch.kernel.startswith("merge") and seen > size and rows:
                    merged[rows > 1] += f"chunk{int(rows > 1)}" in dispatch.kernel
    assert merged[False] > 3 and merged[True] > 3
    assert sum(bool(c.window) for c in cases) > 6 and sum(c.with_sinks for c in cases) > 6
    assert sum(c.padding_rows > 0 for c in cases) > 6 and sum(0 in c.rows for c in cases) > 1
    assert {c.block_size for c in cases} == set(kernel_cases.BLOCK_SIZES)


def test_order_changes_no_bit() -> None:
    call = kernel_cases.build_attention(SMALL)
    bits = {emulated(call, order, 3).view(mx.uint16).tolist().__repr__() for order in Order}
    assert len(bits) == 1


@pytest.mark.parametrize("entry", [-1, 10_000])
def test_a_hole_gives_nan_and_is_not_followed(entry: int) -> None:
    call = kernel_cases.build_attention(SMALL)
    tables = np.array(call.arrays[3])
    tables[0, 2] = entry
    arrays = (*call.arrays[:3], mx.array(tables), *call.arrays[4:])
    with_hole = emulated(dataclasses.replace(call, arrays=arrays), Order.SHUFFLED)
    assert mx.isnan(with_hole[0]).all().item()
    expected = call.run(reference.paged_attention)
    assert kernel_cases.excess(with_hole[1:], expected[1:]) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_kv_write(seed: int) -> None:
    call = kernel_cases.draw_write(np.random.default_rng(seed), rows_max=20)
    k_pool, v_pool, keys, values, slots = call.arrays
    shape = {
        "rows": keys.shape[0], "slots": k_pool.shape[0] * k_pool.shape[1],
        "key_bytes": keys[0].nbytes, "value_bytes": values[0].nbytes,
    }  # fmt: skip
    what = plan("kv_write", *shape.items())
    out = run_plan(Machine(Order(seed), seed), what, [raw(a) for a in call.arrays], [0, 1])
    expected = reference.kv_write(k_pool, v_pool, keys, values, slots)
    for actual, pool in zip(out, expected, strict=True):
        np.testing.assert_array_equal(actual, raw(pool))


def test_a_slot_past_the_pool_is_not_written() -> None:
    pool, rows = np.zeros((2, 8, 1, 8), np.float32), np.ones((2, 1, 8), np.float32)
    what = plan("kv_write", ("rows", 2), ("slots", 16), ("key_bytes", 32), ("value_bytes", 32))
    inputs = [pool, pool, rows, rows, np.array([16, 3], np.int64)]
    keys, _ = run_plan(Machine(), what, inputs, [0, 1])
    assert keys.sum() == 8 and keys[0, 3].sum() == 8


@pytest.mark.parametrize("seed", range(4))
def test_copy_blocks(seed: int) -> None:
    call = kernel_cases.draw_copy(np.random.default_rng(seed), num_blocks_max=6)
    shape = [("pairs", call.sources.size), ("num_blocks", call.pools[0].shape[0])]
    what = plan("copy_blocks", *shape, *(("block_bytes", pool[0].nbytes) for pool in call.pools))
    inputs = [raw(a) for a in (*call.pools, call.sources, call.destinations)]
    out = run_plan(Machine(Order(seed), seed), what, inputs, list(range(len(call.pools))))
    expected = reference.copy_blocks(call.pools, call.sources, call.destinations)
    for actual, pool in zip(out, expected, strict=True):
        np.testing.assert_array_equal(actual, raw(pool))


def test_what_no_kernel_serves_is_refused_with_the_reason() -> None:
    odd = dataclasses.replace(SMALL, head_dim=72)
    with pytest.raises(Unserved, match="head size 72"):
        attention_plan(kernel_cases.build_attention(odd))
    with pytest.raises(Unserved, match="16 bytes at a time"):
        plan("kv_write", ("rows", 1), ("slots", 8), ("key_bytes", 24), ("value_bytes", 16))


BARRIER = "THREADGROUP_BARRIER();"
PLANTED = {
    "no first barrier": (f"{BARRIER}\n\n  const int step", "const int step"),
    "no second barrier": (f"{BARRIER}\n\n  for (", "for ("),
    "a lane of the neighbour": ("lane % ROW_LANES + j", "(lane + 1) % ROW_LANES + j"),
    "half of the lanes left out": ("mask = ROW_LANES / 2", "mask = ROW_LANES / 4"),
    "one position too many": ("part.end - 1);", "part.end);"),
    "no mask": ("position >= begin && position < end ? score", "true ? score"),
    "a position further": ("- count + skipped;", "- count + skipped + 1;"),
    "another head": ("params.num_kv_heads + kv_head) * ROW_VECTORS",
                     "params.num_kv_heads + kv_head + 1) * ROW_VECTORS"),
    "parts merged unweighted": ("partial_logarithms[at], 1.0f", "0.0f, 1.0f"),
    "a part left out": ("p < parts;", "p < parts - 1;"),
    "no barrier in the merge": ("THREADGROUP_BARRIER();\n  if (sharers", "if (sharers"),
}  # fmt: skip


def planted(old: str, new: str, call: AttentionCall) -> Plan:
    """Returns the plan with the change in every text."""
    what = attention_plan(call)
    texts = {library: text.replace(old, new) for library, text in what.texts.items()}
    assert texts != what.texts, old
    return dataclasses.replace(what, texts=texts)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str) -> None:
    old, new = PLANTED[name]
    call = kernel_cases.build_attention(dataclasses.replace(SMALL, contexts=(270, 140, 1)))
    expected = call.run(reference.paged_attention)
    assert kernel_cases.excess(emulated(call, Order.SHUFFLED), expected) <= 1
    try:
        actual = emulated(call, Order.SHUFFLED, what=planted(old, new, call))
    except Fault:
        return
    assert kernel_cases.excess(actual, expected) > 1


def test_kernels_are_compiled_for_the_threads_that_run_them() -> None:
    call = kernel_cases.build_attention(SMALL)
    what = planted("_threadgroup(THREADS)]]", "_threadgroup(SIMDGROUPS * 16)]]", call)
    with pytest.raises(Fault, match="is not compiled for 256 threads"):
        emulated(call, Order.ASCENDING, what=what)


def test_a_context_longer_than_its_table_gives_nan_and_reads_nothing_beyond() -> None:
    call = kernel_cases.build_attention(SMALL)
    contexts = mx.array([70, 9, 6 * 16 + 1], mx.int32)
    assert call.arrays[3].shape[1] == 6
    longer = dataclasses.replace(call, arrays=(*call.arrays[:5], contexts))
    actual = emulated(longer, Order.DESCENDING)
    assert mx.isnan(actual[6]).all().item()
    assert kernel_cases.excess(actual[:6], call.run(reference.paged_attention)[:6]) <= 1
    with pytest.raises(Fault, match="of input 3, which has 72"):
        emulated(longer, Order.DESCENDING, what=planted("at < params.max_blocks", "true", call))
