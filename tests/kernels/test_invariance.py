"""A row's bits depend on its own query, position and visible positions, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels

Identical = Callable[[mx.array, mx.array], bool]

LEVELS = pytest.mark.parametrize("level", kernels.simd_levels())


@LEVELS
@pytest.mark.parametrize("window", [0, 1400])
def test_threads_do_not_show(
    level: str, window: int, attention_case: Any, build: Any, identical: Identical
) -> None:
    kernels.set_simd_level(level)
    # 27 MB of K and V, 14 within the window: enough for the parallel path, see serial_bytes in
    # attention_plan.cpp.
    inputs = build(
        attention_case(
            contexts=(4200, 1800, 600),
            rows=(1, 30, 5),
            num_kv_heads=4,
            key_dim=128,
            value_dim=128,
            window=window,
        )
    )
    results = []
    for threads in (1, 2, 3):
        kernels.set_num_threads(threads)
        for _ in range(3):
            results.append(inputs.run(kernels.paged_attention))
            mx.eval(results[-1])
    assert all(identical(result, results[0]) for result in results)


@LEVELS
def test_batch_mates_do_not_show(
    level: str, attention_case: Any, build: Any, identical: Identical
) -> None:
    kernels.set_simd_level(level)
    inputs = build(attention_case(contexts=(1300, 70, 611), rows=(2, 9, 1), key_dim=80))
    together = inputs.run(kernels.paged_attention)
    q, k_pool, v_pool, tables, starts, contexts = inputs.arrays
    for s in range(3):
        begin, end = starts[s].item(), starts[s + 1].item()
        alone = kernels.paged_attention(
            q[begin:end],
            k_pool,
            v_pool,
            tables[s : s + 1],
            mx.array([0, end - begin], mx.int32),
            contexts[s : s + 1],
            **inputs.options,
        )
        assert identical(alone, together[begin:end])


@LEVELS
@pytest.mark.parametrize("options", [{}, {"window": 37}, {"softcap": 3.0, "with_sinks": True}])
def test_chunks_of_a_prompt_do_not_show(
    level: str, options: dict[str, Any], attention_case: Any, build: Any, identical: Identical
) -> None:
    kernels.set_simd_level(level)
    length = 560
    inputs = build(
        attention_case(
            contexts=(length,), rows=(length,), group=3, key_dim=72, value_dim=40, **options
        )
    )
    whole = inputs.run(kernels.paged_attention)
    q, k_pool, v_pool, tables, _, _ = inputs.arrays
    for begin, end in ((0, 1), (1, 8), (8, 39), (39, 520), (520, 559), (559, 560)):
        chunk = kernels.paged_attention(
            q[begin:end],
            k_pool,
            v_pool,
            tables,
            mx.array([0, end - begin], mx.int32),
            mx.array([end], mx.int32),
            **inputs.options,
        )
        assert identical(chunk, whole[begin:end])


def test_the_block_size_does_not_show(
    attention_case: Any, build: Any, identical: Identical
) -> None:
    inputs = build(attention_case(contexts=(96,), rows=(5,), block_size=96))
    expected = inputs.run(kernels.paged_attention)
    q, k_pool, v_pool, tables, starts, contexts = inputs.arrays
    block = tables[0, 0].item()
    for size in (1, 3, 16, 32):
        pools = [pool.reshape(-1, size, *pool.shape[2:]) for pool in (k_pool, v_pool)]
        per_block = 96 // size
        table = mx.array(np.arange(per_block)[None] + block * per_block).astype(mx.int32)
        out = kernels.paged_attention(q, *pools, table, starts, contexts, **inputs.options)
        assert identical(out, expected)
