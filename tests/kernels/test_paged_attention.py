"""paged_attention against the plain-MLX reference, on every instruction set of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxrt import kernels
from mlxrt.kernels import reference

DTYPES = (mx.float32, mx.bfloat16, mx.float16)

Build = Callable[[Any], Any]
Close = Callable[[mx.array, mx.array], None]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Ragged batches: sequences without rows, with one and with more, ending anywhere."""
    sequences = draw(st.integers(1, 4))
    contexts, rows = [], []
    for _ in range(sequences):
        context = draw(st.integers(0, 90))
        contexts.append(context)
        rows.append(draw(st.integers(0, min(context, 20))))
    return {
        "contexts": tuple(contexts),
        "rows": tuple(rows),
        "num_kv_heads": draw(st.integers(1, 4)),
        "group": draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8])),
        "key_dim": 8 * draw(st.integers(1, 33)),
        "value_dim": 8 * draw(st.integers(1, 33)),
        "block_size": draw(st.one_of(st.sampled_from([8, 16, 32]), st.integers(1, 256))),
        "window": draw(st.one_of(st.just(0), st.integers(1, 100))),
        "softcap": draw(st.sampled_from([0.0, 0.0, 1.5, 30.0])),
        "with_sinks": draw(st.booleans()),
        "padding_rows": draw(st.integers(0, 3)),
        "q_dtype": draw(st.sampled_from(DTYPES)),
        "pool_dtype": draw(st.sampled_from(DTYPES)),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes())
def test_any_shape(shape: dict[str, Any], attention_case: Any, build: Build, close: Close) -> None:
    inputs = build(attention_case(**shape))
    expected = inputs.run(reference.paged_attention)
    kernels.reset_counters()
    for level in kernels.simd_levels():
        kernels.set_simd_level(level)
        close(inputs.run(kernels.paged_attention), expected)
    assert kernels.counters()["paged_attention"] == len(kernels.simd_levels())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim"), [(8, 2, 128), (1, 16, 64), (2, 4, 80), (4, 1, 96), (1, 8, 256)]
)
def test_long_contexts_are_merged_from_parts(
    kv_heads: int,
    group: int,
    dim: int,
    dtype: mx.Dtype,
    attention_case: Any,
    build: Build,
    close: Close,
) -> None:
    case = attention_case(
        contexts=(1537, 512, 513, 40),
        rows=(1, 1, 3, 17),
        num_kv_heads=kv_heads,
        group=group,
        key_dim=dim,
        value_dim=dim,
        q_dtype=dtype,
        pool_dtype=dtype,
    )
    inputs = build(case)
    expected = inputs.run(reference.paged_attention)
    for level in kernels.simd_levels():
        kernels.set_simd_level(level)
        close(inputs.run(kernels.paged_attention), expected)


def test_a_window_over_several_parts(attention_case: Any, build: Build, close: Close) -> None:
    inputs = build(
        attention_case(
            contexts=(1700, 1100), rows=(20, 1), window=600, with_sinks=True, softcap=4.0
        )
    )
    close(inputs.run(kernels.paged_attention), inputs.run(reference.paged_attention))


def test_the_window_is_that_of_mlx_lm(attention_case: Any, build: Build, close: Close) -> None:
    from mlx_lm.models.base import create_causal_mask

    length, window = 24, 5
    inputs = build(attention_case(contexts=(length,), rows=(length,), block_size=length))
    q, k_pool, v_pool, tables, _, _ = inputs.arrays
    keys, values = (pool[tables[0, 0].item()].transpose(1, 0, 2)[None] for pool in (k_pool, v_pool))
    expected = mx.fast.scaled_dot_product_attention(
        q.transpose(1, 0, 2)[None],
        keys,
        values,
        scale=inputs.options["scale"],
        mask=create_causal_mask(length, window_size=window),
    )
    inputs.options["window"] = window
    close(inputs.run(kernels.paged_attention), expected[0].transpose(1, 0, 2))


def test_sinks_are_those_of_mlx(attention_case: Any, build: Build, close: Close) -> None:
    inputs = build(attention_case(contexts=(9,), rows=(1,), block_size=9, with_sinks=True))
    q, k_pool, v_pool, tables, _, _ = inputs.arrays
    keys, values = (pool[tables[0, 0].item()].transpose(1, 0, 2)[None] for pool in (k_pool, v_pool))
    expected = mx.fast.scaled_dot_product_attention(
        q.transpose(1, 0, 2)[None],
        keys,
        values,
        scale=inputs.options["scale"],
        sinks=inputs.options["sinks"],
    )
    close(inputs.run(kernels.paged_attention), expected[0].transpose(1, 0, 2))


def test_rows_without_a_visible_position_are_zero(attention_case: Any, build: Build) -> None:
    inputs = build(
        attention_case(contexts=(0, 5, 4), rows=(2, 1, 0), padding_rows=3, with_sinks=True)
    )
    out = np.array(inputs.run(kernels.paged_attention))
    assert not out[:2].any() and not out[3:].any()
    assert out[2].any()


def test_more_rows_than_context_leave_the_early_rows_zero(
    attention_case: Any, build: Build
) -> None:
    inputs = build(attention_case(contexts=(2,), rows=(4,)))
    out = np.array(inputs.run(kernels.paged_attention))
    assert not out[:2].any() and np.isfinite(out).all() and out[2].any() and out[3].any()


def test_no_rows_at_all(attention_case: Any, build: Build) -> None:
    inputs = build(attention_case(contexts=(5,), rows=(0,)))
    assert inputs.run(kernels.paged_attention).shape == (0, 4, 64)


@pytest.mark.parametrize("level", kernels.simd_levels())
def test_a_poisoned_sequence_shows_and_harms_no_other(
    level: str, attention_case: Any, build: Build, identical: Callable[..., bool]
) -> None:
    """A NaN that a row sees must reach its output: the engine finds broken sequences by it."""
    kernels.set_simd_level(level)
    inputs = build(attention_case(contexts=(40, 40), rows=(6, 6)))
    clean = inputs.run(kernels.paged_attention)
    q, k_pool, v_pool, tables, starts, contexts = inputs.arrays
    for pool_index, value in ((1, np.nan), (2, np.nan), (1, np.inf)):
        arrays = list(inputs.arrays)
        poisoned = np.array(arrays[pool_index])
        poisoned[tables[0, 37 // 16].item(), 37 % 16] = value  # the fourth of the six rows
        arrays[pool_index] = mx.array(poisoned)
        inputs.arrays = tuple(arrays)
        out = inputs.run(kernels.paged_attention)
        assert np.isnan(np.array(out[3:6])).all(axis=-1).any(axis=-1).all()
        assert identical(out[:3], clean[:3])
        assert identical(out[6:], clean[6:])
        inputs.arrays = (q, k_pool, v_pool, tables, starts, contexts)


def test_strided_inputs(attention_case: Any, build: Build, identical: Callable[..., bool]) -> None:
    inputs = build(attention_case(contexts=(40, 33), rows=(3, 2)))
    expected = inputs.run(kernels.paged_attention)
    q, k_pool, v_pool, tables, starts, contexts = inputs.arrays
    views = (
        mx.contiguous(q.transpose(1, 0, 2)).transpose(1, 0, 2),
        mx.contiguous(q.transpose(2, 1, 0)).transpose(2, 1, 0),
    )
    column_major = mx.contiguous(tables.T).T
    doubled = mx.contiguous(mx.stack([starts, starts], axis=1))[:, 1]
    for view in views:
        out = kernels.paged_attention(
            view, k_pool, v_pool, column_major, doubled, contexts, **inputs.options
        )
        assert identical(out, expected)


def test_under_compile_with_writes_upstream(
    attention_case: Any, build: Build, close: Close
) -> None:
    inputs = build(attention_case(contexts=(20,), rows=(1,)))
    q, k_pool, v_pool, tables, starts, contexts = inputs.arrays
    slot = mx.array([tables[0, 19 // 16].item() * 16 + 19 % 16], mx.int64)

    @mx.compile
    def step(q: mx.array, keys: mx.array, values: mx.array, k: mx.array, v: mx.array) -> mx.array:
        k, v = kernels.kv_write(k, v, keys, values, slot)
        return kernels.paged_attention(q, k, v, tables, starts, contexts, **inputs.options)

    for seed in range(3):
        keys, values = mx.random.normal((2, 1, 2, 64), key=mx.random.key(seed))
        out = step(q, keys, values, k_pool, v_pool)
        mx.eval(out)  # the in-place write is part of it: only now may the reference read the pool
        expected = reference.paged_attention(
            q,
            *reference.kv_write(k_pool, v_pool, keys, values, slot),
            *inputs.arrays[3:],
            **inputs.options,
        )
        close(out, expected)
