"""norm_rope_write, add_rms_norm and swiglu: what mx.fast gives, in place, for any shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels
from mlxrt.check import fused_cases
from mlxrt.check.fused_cases import excess, norm_rope_excess
from mlxrt.kernels import reference
from mlxrt.kernels.frequencies import inverse_frequencies

DTYPES = (mx.float32, mx.bfloat16, mx.float16)
ODD_HEAD_DIMS = (2, 6, 8, 24, 40, 64, 72, 80, 128, 130, 256)
ROPE_BASE = 1e6

Identical = Callable[[mx.array, mx.array], bool]


@pytest.mark.parametrize("level", kernels.simd_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_rope_write_of_any_shape(dtype: mx.Dtype, level: str) -> None:
    kernels.set_simd_level(level)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        call = fused_cases.draw_norm_rope(
            rng, dtype=dtype, head_dims=ODD_HEAD_DIMS, rows_max=40,
            pool_dtype=DTYPES[int(rng.integers(3))],
        )  # fmt: skip
        worst = norm_rope_excess(call, kernels.norm_rope_write, reference.norm_rope_write)
        assert worst <= 1, (seed, call)
    assert kernels.counters()["norm_rope_write"] == 25


@pytest.mark.parametrize("level", kernels.simd_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_ops_of_any_shape(dtype: mx.Dtype, level: str) -> None:
    kernels.set_simd_level(level)
    for seed in range(25):
        drawn = fused_cases.draw_rows(np.random.default_rng(seed), dtype=dtype, rows_max=20)
        arguments = drawn.x, drawn.residual, drawn.weight, 1e-6
        total, normed = kernels.add_rms_norm(*arguments)
        assert mx.array_equal(total, drawn.x + drawn.residual)
        assert excess(normed, reference.add_rms_norm(*arguments)[1]) <= 1, seed
        assert excess(kernels.swiglu(drawn.gate_up), reference.swiglu(drawn.gate_up)) <= 1, seed


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_swiglu_has_mlx_s_bits_for_every_gate(dtype: mx.Dtype) -> None:
    gate = mx.array(np.arange(1 << 16, dtype=np.uint16)).view(dtype).reshape(64, 1024)
    up = mx.random.normal((64, 1024), key=mx.random.key(3)).astype(dtype)
    gate_up = mx.concatenate([gate, up], axis=1)
    assert mx.array_equal(kernels.swiglu(gate_up), reference.swiglu(gate_up), equal_nan=True)


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_has_mlx_s_bits_far_into_a_context(
    dtype: mx.Dtype, traditional: bool, identical: Identical
) -> None:
    """By a base, as most models have it; without norms, whose sums may go another way."""
    rows, heads, dim = 30, 3, 64
    qkv = mx.random.normal((rows, 5 * dim), key=mx.random.key(1)).astype(dtype)
    positions = mx.array(np.random.default_rng(2).integers(0, 130_000, rows).astype(np.int32))
    pools = [mx.zeros((rows, 1, 1, dim), dtype) for _ in range(2)]
    queries, keys, values = kernels.norm_rope_write(
        qkv, None, None, 0.0, positions, inverse_frequencies(dim, base=ROPE_BASE), 1.0,
        traditional, *pools, mx.arange(rows).astype(mx.int64), heads, 1,
    )  # fmt: skip
    split = qkv.reshape(rows, 5, 1, dim)
    expected = mx.fast.rope(
        split[:, :4], dim, traditional=traditional, base=ROPE_BASE, scale=1.0, offset=positions
    )
    if kernels.simd_level() == "generic":  # has no fused multiply-add
        assert excess(queries, expected[:, :3, 0], of_row=True) <= 1
        return
    assert identical(queries, expected[:, :3, 0])
    assert identical(keys[:, 0], expected[:, 3:, 0]) and identical(values[:, 0], split[:, 4:, 0])


def test_angles_that_the_kernels_do_not_reduce() -> None:
    """Past 2^22 they go to the library; MLX's own are right up to 2^23."""
    qkv = mx.random.normal((1, 3 * 64), key=mx.random.key(1))
    pools = [mx.zeros((1, 1, 1, 64)) for _ in range(2)]
    inverse = mx.array([1.25, 0.5])
    for position in (4_194_304, 6_000_000):
        queries, *_ = kernels.norm_rope_write(
            qkv, None, None, 0.0, mx.array([position], mx.int32), inverse, 1.0, False, *pools,
            mx.array([0], mx.int64), 1, 1,
        )  # fmt: skip
        angles = position * np.array(inverse, np.float64)
        x = np.array(qkv[0, :64], np.float64)
        turned = x[:2] * np.cos(angles) - x[2:4] * np.sin(angles)
        np.testing.assert_allclose(np.array(queries)[0, 0, :2], turned, rtol=1e-5, atol=1e-6)


def test_llama_3_s_frequencies_and_part_of_a_head(identical: Identical) -> None:
    freqs = 5e5 ** (mx.arange(0, 32, 2) / 32) * mx.array([1.0] * 8 + [8.0] * 8)
    qkv = mx.random.normal((4, 3 * 80), key=mx.random.key(5))
    positions = mx.array([0, 1, 700, 8191], mx.int32)
    pools = [mx.zeros((4, 1, 1, 80)) for _ in range(2)]
    queries, *_ = kernels.norm_rope_write(
        qkv, None, None, 0.0, positions, inverse_frequencies(32, freqs=freqs), 0.5, False, *pools,
        mx.arange(4).astype(mx.int64), 1, 1,
    )  # fmt: skip
    expected = mx.fast.rope(
        qkv.reshape(4, 3, 1, 80)[:, :1], 32, traditional=False, base=None, scale=0.5,
        offset=positions, freqs=freqs,
    )[:, :, 0]  # fmt: skip
    assert excess(queries, expected, of_row=True) <= 0.1
    assert identical(queries[..., 32:], expected[..., 32:])


def test_frequencies_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="even and positive, got 3"):
        inverse_frequencies(3, base=1e4)
    with pytest.raises(ValueError, match=r"must have shape \(4,\)"):
        inverse_frequencies(8, freqs=mx.ones(3))
    with pytest.raises(ValueError, match="exactly one"):
        inverse_frequencies(8)


def test_strided_inputs(identical: Identical) -> None:
    rng = np.random.default_rng(8)
    call = fused_cases.draw_norm_rope(rng, dtype=mx.bfloat16, rows_max=9)
    wide = mx.concatenate([call.arguments["qkv"], call.arguments["qkv"]], axis=1)
    turned = mx.contiguous(call.arguments["qkv"].T).T
    expected = call.run(kernels.norm_rope_write)
    for qkv in (wide[:, : call.arguments["qkv"].shape[1]], turned):
        strided = dataclasses.replace(call, arguments={**call.arguments, "qkv": qkv})
        for a, b in zip(strided.run(kernels.norm_rope_write), expected, strict=True):
            assert identical(a, b)
    rows = fused_cases.draw_rows(rng, dtype=mx.float16)
    x, gate_up = (mx.contiguous(a.T).T for a in (rows.x, rows.gate_up))
    assert identical(kernels.swiglu(gate_up), kernels.swiglu(rows.gate_up))
    arguments = rows.residual, rows.weight, 1e-5
    assert identical(kernels.add_rms_norm(x, *arguments)[1],
                     kernels.add_rms_norm(rows.x, *arguments)[1])  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batch_mates_change_no_bit(dtype: mx.Dtype, identical: Identical) -> None:
    rng = np.random.default_rng(3)
    call = fused_cases.draw_norm_rope(rng, dtype=dtype, head_dims=[128])
    rows = 1 + (1 << 20) // call.arguments["qkv"].shape[1]
    picked = mx.array(rng.integers(0, call.arguments["qkv"].shape[0], rows))
    many = {name: call.arguments[name][picked] for name in ("qkv", "positions")}
    many["slots"] = mx.arange(rows).astype(mx.int64)
    shape = (rows, 1, *call.pool_shape[2:])
    large = dataclasses.replace(call, arguments={**call.arguments, **many}, pool_shape=shape)
    results = []
    for threads in (1, 2):
        kernels.set_num_threads(threads)
        results.append(large.run(kernels.norm_rope_write))
        mx.eval(results[-1])
    assert all(identical(a, b) for a, b in zip(*results, strict=True))
    assert identical(results[0][0], call.run(kernels.norm_rope_write)[0][picked])


def test_no_rows() -> None:
    pools = [mx.ones((2, 4, 1, 8)) for _ in range(2)]
    queries, keys, values = kernels.norm_rope_write(
        mx.zeros((0, 24)), None, None, 0.0, mx.zeros(0, mx.int32), mx.ones(4), 1.0, False, *pools,
        mx.zeros(0, mx.int64), 1, 1,
    )  # fmt: skip
    assert queries.shape == (0, 1, 8) and (keys == 1).all() and (values == 1).all()
    assert kernels.swiglu(mx.zeros((0, 8))).tolist() == []
    assert [a.shape for a in kernels.add_rms_norm(mx.zeros((0, 4)), mx.zeros((0, 4)),
                                                  mx.ones(4), 0.0)] == [(0, 4)] * 2  # fmt: skip


def test_nan_and_infinity_come_through() -> None:
    x = mx.array([[1.0, float("nan"), 2.0, 3.0], [1.0, float("inf"), 2.0, 3.0]])
    total, normed = kernels.add_rms_norm(x, x, mx.ones(4), 1e-6)
    assert mx.array_equal(total, 2 * x, equal_nan=True)
    assert mx.isnan(normed[0]).all() and mx.isnan(normed[1, 1])
