"""Inside mx.compile every operation does what it does outside, and pools stay in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels
from mlxrt.check import fused_cases, kernel_cases
from mlxrt.check.kernel_cases import AttentionCase

POOL = (4096, 16, 2, 64)
"""32 MiB in float32: a copy of it would show."""
HEADS, KV_HEADS, DIM = 4, 2, 64
ROWS = 3

Step = Callable[..., tuple[mx.array, ...]]


@pytest.fixture(autouse=True)
def compiling() -> Iterator[None]:
    """Turns mx.compile on, which an engine in this process may have turned off for all of it, and
    leaves it off, as an engine on a CPU would."""
    mx.enable_compile()
    yield
    mx.disable_compile()


def layer(
    hidden: mx.array, weights: dict[str, mx.array], pools: tuple[mx.array, mx.array],
    positions: mx.array, slots: mx.array, tables: mx.array, contexts: mx.array,
) -> tuple[mx.array, ...]:  # fmt: skip
    """A decoder layer of the fused operations, after a copy of a block."""
    copied = kernels.copy_blocks(
        list(pools), mx.array([0], mx.int32), mx.array([POOL[0] - 1], mx.int32)
    )
    queries, keys, values = kernels.norm_rope_write(
        hidden @ weights["qkv"], weights["q_norm"], weights["k_norm"], 1e-6, positions,
        weights["inverse"], 1.0, False, copied[0], copied[1], slots, HEADS, KV_HEADS,
    )  # fmt: skip
    keys, values = kernels.kv_write(
        keys, values, mx.ones((1, KV_HEADS, DIM)), mx.ones((1, KV_HEADS, DIM)),
        mx.array([3], mx.int64),
    )  # fmt: skip
    starts = mx.arange(ROWS + 1).astype(mx.int32)
    attended = kernels.paged_attention(
        queries, keys, values, tables, starts, contexts, scale=DIM**-0.5, most_rows=1
    )
    total, normed = kernels.add_rms_norm(
        attended.reshape(ROWS, -1) @ weights["o"], hidden, weights["norm"], 1e-6
    )
    return total + kernels.swiglu(normed @ weights["gate_up"]) @ weights["down"], keys, values


def drawn_weights() -> dict[str, mx.array]:
    rng = np.random.default_rng(0)
    size, inner = 32, 48
    shapes = {
        "qkv": (size, (HEADS + 2 * KV_HEADS) * DIM), "o": (HEADS * DIM, size), "norm": (size,),
        "q_norm": (DIM,), "k_norm": (DIM,), "gate_up": (size, 2 * inner), "down": (inner, size),
    }  # fmt: skip
    drawn = {k: mx.array(rng.standard_normal(v).astype(np.float32)) for k, v in shapes.items()}
    drawn["inverse"] = mx.array(fused_cases.draw_inverse_frequencies(rng, DIM // 2))
    mx.eval(drawn)
    return drawn


def new_pools() -> tuple[mx.array, mx.array]:
    pools = mx.zeros(POOL), mx.zeros(POOL)
    mx.eval(pools)
    return pools


def run_steps(step: Step, pools: tuple[mx.array, mx.array], count: int) -> list[mx.array]:
    """Runs steps of sequences in blocks 1, 2 and 3; returns each step's hidden rows."""
    rng = np.random.default_rng(1)
    weights, outputs = drawn_weights(), []
    tables = mx.array([[1], [2], [3]], mx.int32)
    for position in range(count):
        hidden = mx.array(rng.standard_normal((ROWS, 32)).astype(np.float32))
        slots = mx.array(np.array([16, 32, 48]) + position)
        contexts = mx.full((ROWS,), position + 1, dtype=mx.int32)
        positions = mx.full((ROWS,), position, dtype=mx.int32)
        out, *pools = step(hidden, weights, tuple(pools), positions, slots, tables, contexts)
        outputs.append(out)
        mx.async_eval(out, *pools)
    mx.eval(outputs, *pools)
    return outputs


def test_a_compiled_layer_equals_an_uncompiled_one_and_copies_no_pool() -> None:
    plain = run_steps(layer, new_pools(), 9)
    pools = new_pools()
    addresses = [kernels.data_address(pool) for pool in pools]
    kernels.reset_counters()
    traced: list[int] = []

    def counted(*arguments: Any) -> tuple[mx.array, ...]:
        traced.append(1)
        return layer(*arguments)

    step = mx.compile(counted)
    run_steps(step, pools, 1)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    compiled = run_steps(step, pools, 9)
    assert mx.get_peak_memory() - before < 4 << 20
    assert len(traced) == 1
    operations = {name for name, count in kernels.counters().items() if count}
    assert operations == {
        "kv_write", "copy_blocks", "paged_attention", "norm_rope_write", "add_rms_norm", "swiglu",
    }  # fmt: skip
    assert {kernels.counters()[name] for name in operations} == {10}
    assert [kernels.data_address(pool) for pool in pools] == addresses
    assert pools[0].any() and mx.array_equal(pools[0][0], pools[0][-1])
    for a, b in zip(plain, compiled, strict=True):
        assert mx.array_equal(a, b)


def test_a_compiled_step_is_traced_anew_for_another_shape() -> None:
    gate = mx.compile(kernels.swiglu)
    for rows in (1, 5, 1, 64):
        x = mx.random.normal((rows, 64), key=mx.random.key(rows))
        assert mx.array_equal(gate(x), kernels.swiglu(x))


def test_shapeless_compilation_takes_any_number_of_rows() -> None:
    @(lambda f: mx.compile(f, shapeless=True))
    def both(x: mx.array, residual: mx.array) -> tuple[mx.array, ...]:
        total, normed = kernels.add_rms_norm(x, residual, mx.ones(64), 1e-6)
        return kernels.swiglu(normed), total

    for rows in (2, 7):
        x = mx.random.normal((rows, 64), key=mx.random.key(rows))
        total, normed = kernels.add_rms_norm(x, x, mx.ones(64), 1e-6)
        out, also = both(x, x)
        assert mx.array_equal(out, kernels.swiglu(normed)) and mx.array_equal(also, total)


def test_equal_calls_are_merged_and_others_are_not() -> None:
    """A primitive that compares its options wrongly would give one result for two calls."""
    x = mx.random.normal((2, 64), key=mx.random.key(0))
    keys, values = (mx.zeros((1, 4, 1, 16)) for _ in range(2))
    inverse, slots = mx.array([1.0, 0.5]), mx.array([0, 1], mx.int64)
    arrays = x, keys, values, inverse, slots, mx.array([1, 2], mx.int32), mx.ones(64)
    mx.eval(arrays)

    def everything(x: mx.array, *others: mx.array) -> list[mx.array]:
        keys, values, inverse, slots, positions, ones = others
        norms = [kernels.add_rms_norm(x, x, ones, eps)[1] for eps in (1e-6, 1.0, 1e-6)]
        turned = [
            kernels.norm_rope_write(
                x, norm, None, 1e-6, positions, inverse, scale, traditional, keys, values, slots,
                2, 1,
            )[0]
            for scale, traditional in ((1.0, False), (2.0, False), (1.0, True))
            for norm in (None, ones[:16])
        ]  # fmt: skip
        gated = [kernels.swiglu(x), kernels.swiglu(x)]
        return [array + 1 for array in (*norms, *turned, *gated)]  # an output is not merged

    expected = everything(*arrays)
    mx.eval(expected)
    kernels.reset_counters()
    compiled = mx.compile(everything)(*arrays)
    mx.eval(compiled)
    assert kernels.counters()["swiglu"] == 1 and kernels.counters()["add_rms_norm"] == 2
    assert kernels.counters()["norm_rope_write"] == 6
    for a, b in zip(expected, compiled, strict=True):
        assert mx.array_equal(a, b)
    distinct = {str(np.array(a).tobytes()) for a in compiled}
    assert len(distinct) == 2 + 6 + 1


@pytest.mark.parametrize("window", [0, 20])
def test_attention_of_a_chunk(window: int) -> None:
    case = AttentionCase((70, 9, 1), (10, 5, 1), 2, 2, 64, 16, mx.bfloat16, window=window)
    call = kernel_cases.build_attention(case)
    attention = mx.compile(
        lambda *arrays: kernels.paged_attention(*arrays, scale=call.scale, window=window)
    )
    for _ in range(2):
        actual = attention(*call.arrays)
        assert mx.array_equal(actual, call.run(kernels.paged_attention))
