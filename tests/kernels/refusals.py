"""What does not fit is refused by name: shapes when building, indices when evaluating.

Run by `test_refusals.py`, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlxrt import kernels


def attention_arguments() -> dict[str, Any]:
    return {
        "q": mx.ones((3, 4, 16)),
        "k_pool": mx.ones((5, 4, 2, 16)),
        "v_pool": mx.ones((5, 4, 2, 8)),
        "block_tables": mx.array([[1, 2], [3, 4]], mx.int32),
        "query_start": mx.array([0, 1, 3], mx.int32),
        "context_len": mx.array([5, 8], mx.int32),
        "scale": 1.0,
    }


def write_arguments() -> dict[str, Any]:
    return {
        "k_pool": mx.zeros((5, 4, 2, 16)),
        "v_pool": mx.zeros((5, 4, 2, 8)),
        "keys": mx.ones((2, 2, 16)),
        "values": mx.ones((2, 2, 8)),
        "slots": mx.array([3, 4], mx.int64),
    }


def copy_arguments() -> dict[str, Any]:
    return {
        "pools": [mx.zeros((5, 4)), mx.zeros((5, 2))],
        "sources": mx.array([1], mx.int32),
        "destinations": mx.array([2], mx.int32),
    }


def norm_rope_arguments() -> dict[str, Any]:
    return {
        "qkv": mx.ones((2, 6 * 16)),
        "q_norm": mx.ones(16),
        "k_norm": mx.ones(16),
        "eps": 1e-6,
        "positions": mx.array([3, 4], mx.int32),
        "inverse_frequencies": mx.ones(8),
        "scale": 1.0,
        "traditional": False,
        "keys": mx.zeros((5, 4, 1, 16)),
        "values": mx.zeros((5, 4, 1, 16)),
        "slots": mx.array([3, 4], mx.int64),
        "num_q_heads": 4,
        "num_kv_heads": 1,
    }


def add_norm_arguments() -> dict[str, Any]:
    return {
        "x": mx.ones((2, 8)), "residual": mx.ones((2, 8)), "weight": mx.ones(8), "eps": 1e-6,
    }  # fmt: skip


def sample_arguments() -> dict[str, Any]:
    return {"logits": mx.zeros((2, 9)), "rules": mx.zeros((2, 5))}


def test_the_arguments_themselves_fit() -> None:
    mx.eval(kernels.norm_rope_write(**norm_rope_arguments()))
    mx.eval(kernels.add_rms_norm(**add_norm_arguments()))
    mx.eval(kernels.swiglu(mx.ones((2, 8))))
    mx.eval(kernels.sample(**sample_arguments()))
    mx.eval(kernels.paged_attention(**attention_arguments()))
    mx.eval(kernels.kv_write(**write_arguments()))
    mx.eval(kernels.copy_blocks(**copy_arguments()))


@pytest.mark.parametrize(
    ("operation", "arguments", "changed", "named"),
    [
        (kernels.paged_attention, attention_arguments, changed, named)
        for changed, named in [
            ({"q": mx.ones((3, 64))}, "q must have 3 axes"),
            ({"q": mx.ones((3, 4, 16), mx.int32)}, "q must be float32, bfloat16 or float16"),
            ({"q": mx.ones((3, 5, 16))}, "q has 5 heads, not a multiple of k_pool's 2"),
            ({"q": mx.ones((3, 4, 8))}, "q has shape"),
            ({"k_pool": mx.ones((5, 4, 2))}, "k_pool must have 4 axes"),
            ({"k_pool": mx.ones((5, 4, 2, 16), mx.int8)}, "k_pool must be float32"),
            ({"v_pool": mx.ones((5, 4, 2, 8), mx.float16)}, "v_pool must be float32, got float16"),
            ({"v_pool": mx.ones((5, 2, 2, 8))}, "v_pool has shape"),
            ({"v_pool": mx.ones((5, 4, 2, 12))}, "v_pool has head size 12"),
            ({"block_tables": mx.array([1, 2], mx.int32)}, "block_tables must have 2 axes"),
            ({"block_tables": mx.array([[1, 2], [3, 4]])[:, :1].astype(mx.int64)}, "block_tables"),
            ({"query_start": mx.array([0, 1], mx.int32)}, "query_start has shape"),
            ({"query_start": mx.array([0, 1, 3], mx.int64)}, "query_start must be int32"),
            ({"context_len": mx.array([5], mx.int32)}, "context_len has shape"),
            ({"context_len": mx.array([5.0, 8.0])}, "context_len must be int32"),
            ({"scale": float("nan")}, "scale must be finite"),
            ({"window": -1}, "window must be 0"),
            ({"softcap": -2.0}, "softcap must be 0"),
            ({"sinks": mx.ones((3,))}, "sinks has shape"),
            ({"sinks": mx.ones((4,), mx.int32)}, "sinks must be float32"),
        ]
    ]
    + [
        (kernels.kv_write, write_arguments, changed, named)
        for changed, named in [
            ({"k_pool": mx.zeros((5, 8, 16))}, "k_pool must have 4 axes"),
            ({"v_pool": mx.zeros((6, 4, 2, 8))}, "v_pool has shape"),
            ({"keys": mx.ones((2, 32))}, "keys must have 3 axes"),
            ({"keys": mx.ones((3, 2, 16))}, "keys has shape"),
            ({"keys": mx.ones((2, 1, 16))}, "keys has shape"),
            ({"values": mx.ones((2, 2, 16))}, "values has shape"),
            ({"slots": mx.array([3, 4], mx.int32)}, "slots must be int64, got int32"),
            ({"slots": mx.array([[3, 4]], mx.int64)}, "slots must have 1 axes"),
        ]
    ]
    + [
        (kernels.norm_rope_write, norm_rope_arguments, changed, named)
        for changed, named in [
            ({"qkv": mx.ones((2, 6, 16))}, "qkv must have 2 axes"),
            ({"qkv": mx.ones((2, 5 * 16))}, "qkv has shape"),
            ({"qkv": mx.ones((2, 6 * 16), mx.int32)}, "qkv must be float32, bfloat16 or float16"),
            ({"q_norm": mx.ones(15)}, "q_norm has shape"),
            ({"k_norm": mx.ones(16, mx.bfloat16)}, "k_norm must be float32, got bfloat16"),
            ({"k_norm": mx.ones((1, 16))}, "k_norm must have 1 axes"),
            ({"eps": -1.0}, "eps must be 0 or positive"),
            ({"eps": float("nan")}, "eps must be 0 or positive"),
            ({"positions": mx.array([3, 4], mx.int64)}, "positions must be int32, got int64"),
            ({"positions": mx.array([3], mx.int32)}, "positions has shape"),
            ({"inverse_frequencies": mx.ones(9)}, "inverse_frequencies has 9 entries"),
            ({"inverse_frequencies": mx.ones(0)}, "inverse_frequencies has 0 entries"),
            ({"inverse_frequencies": mx.ones(8, mx.float16)}, "inverse_frequencies must be float"),
            ({"scale": float("inf")}, "scale must be finite"),
            ({"keys": mx.zeros((5, 4, 16))}, "keys must have 4 axes"),
            ({"keys": mx.zeros((5, 4, 1, 16), mx.int8)}, "keys must be float32"),
            ({"values": mx.zeros((5, 4, 1, 8))}, "values has shape"),
            ({"values": mx.zeros((5, 4, 1, 16), mx.float16)}, "values must be float32, got"),
            ({"slots": mx.array([3, 4], mx.int32)}, "slots must be int64"),
            ({"slots": mx.array([3], mx.int64)}, "slots has shape"),
            ({"num_q_heads": 0}, "num_q_heads must be positive"),
            ({"num_kv_heads": -1}, "num_kv_heads must be positive"),
            ({"num_kv_heads": 2}, "keys has shape"),
        ]
    ]
    + [
        (kernels.add_rms_norm, add_norm_arguments, changed, named)
        for changed, named in [
            ({"x": mx.ones(8)}, "x must have 2 axes"),
            ({"x": mx.ones((2, 8), mx.int32)}, "x must be float32, bfloat16 or float16"),
            ({"x": mx.ones((2, 0))}, "x has rows without elements"),
            ({"residual": mx.ones((1, 8))}, "residual has shape"),
            ({"residual": mx.ones((2, 8), mx.float16)}, "residual must be float32, got float16"),
            ({"weight": mx.ones(7)}, "weight has shape"),
            ({"weight": mx.ones(8, mx.bfloat16)}, "weight must be float32, got bfloat16"),
            ({"eps": -1e-6}, "eps must be 0 or positive"),
        ]
    ]
    + [
        (kernels.swiglu, lambda: {}, changed, named)
        for changed, named in [
            ({"gate_up": mx.ones(8)}, "gate_up must have 2 axes"),
            ({"gate_up": mx.ones((2, 7))}, "gate_up has shape .* even size"),
            ({"gate_up": mx.ones((2, 8), mx.int32)}, "gate_up must be float32"),
        ]
    ]
    + [
        (kernels.copy_blocks, copy_arguments, changed, named)
        for changed, named in [
            ({"pools": []}, "pools must name at least one"),
            ({"pools": [mx.zeros((5, 4)), mx.zeros((4, 4))]}, r"pools\[1\] has shape"),
            ({"pools": [mx.array(1.0)]}, r"pools\[0\] must have at least one axis"),
            ({"sources": mx.array([1], mx.int64)}, "sources must be int32"),
            ({"destinations": mx.array([1, 2], mx.int32)}, "destinations has shape"),
        ]
    ]
    + [
        (kernels.sample, sample_arguments, changed, named)
        for changed, named in [
            ({"logits": mx.zeros((9,))}, "logits must have 2 axes"),
            ({"logits": mx.zeros((2, 9), mx.int32)}, "logits must be float32"),
            ({"logits": mx.zeros((2, 0))}, "logits has shape"),
            ({"logits": mx.zeros((1, 1048577))}, "logits has shape"),
            ({"rules": mx.zeros((5,))}, "rules must have 2 axes"),
            ({"rules": mx.zeros((2, 5), mx.float16)}, "rules must be float32"),
            ({"rules": mx.zeros((2, 4))}, "rules has shape"),
            ({"rules": mx.zeros((0, 5))}, "rules must have at least one row"),
        ]
    ],
)
def test_building_refuses(
    operation: Callable[..., Any],
    arguments: Callable[[], dict[str, Any]],
    changed: dict[str, Any],
    named: str,
) -> None:
    with pytest.raises(ValueError, match=rf"\[{operation.__name__}\] {named}"):
        operation(**{**arguments(), **changed})


def test_one_array_as_two_pools_is_refused() -> None:
    pool = mx.zeros((5, 4))
    with pytest.raises(ValueError, match=r"pools\[1\] is the same array as pools\[0\]"):
        kernels.copy_blocks(**{**copy_arguments(), "pools": [pool, pool]})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"block_tables": mx.array([[1, 2], [3, 5]], mx.int32)}, r"block_tables\[1\]\[1\] is 5"),
        ({"block_tables": mx.array([[1, -1], [3, 4]], mx.int32)}, r"block_tables\[0\]\[1\] is -1"),
        ({"context_len": mx.array([5, 9], mx.int32)}, r"context_len\[1\] is 9"),
        ({"query_start": mx.array([1, 1, 3], mx.int32)}, r"query_start\[0\] is 1"),
        ({"query_start": mx.array([0, 1, 4], mx.int32)}, r"query_start\[2\] is 4"),
        ({"query_start": mx.array([0, 2, 1], mx.int32)}, r"query_start\[2\] is 1"),
    ],
)
def test_evaluating_attention_refuses(changed: dict[str, Any], named: str) -> None:
    out = kernels.paged_attention(**{**attention_arguments(), **changed})
    with pytest.raises(RuntimeError, match=rf"\[paged_attention\] {named}"):
        mx.eval(out)
    mx.eval(kernels.paged_attention(**attention_arguments()))  # the stream goes on


def test_entries_that_no_row_needs_are_not_checked() -> None:
    arguments = attention_arguments()
    arguments["block_tables"] = mx.array([[1, 2, 99], [-7, 4, 99]], mx.int32)
    arguments["window"] = 2
    mx.eval(kernels.paged_attention(**arguments))


def test_a_slot_past_the_pool_writes_nothing() -> None:
    arguments = write_arguments()
    arguments["slots"] = mx.array([3, 20], mx.int64)
    with pytest.raises(RuntimeError, match=r"\[kv_write\] slots\[1\] is 20, the pool has 20 slots"):
        mx.eval(kernels.kv_write(**arguments))
    assert not arguments["k_pool"].any() and not arguments["v_pool"].any()
    arguments = norm_rope_arguments()
    arguments["slots"] = mx.array([3, 20], mx.int64)
    refused = r"\[norm_rope_write\] slots\[1\] is 20, the pools have 20 slots"
    with pytest.raises(RuntimeError, match=refused):
        mx.eval(kernels.norm_rope_write(**arguments))
    assert not arguments["keys"].any() and not arguments["values"].any()


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (([5], [1]), "pair 0 is 5 -> 1"),
        (([0, 1], [1, 5]), "pair 1 is 1 -> 5"),
        (([0, 1], [2, 2]), r"destinations\[1\] is 2 for the second time"),
    ],
)
def test_evaluating_copies_refuses(pairs: tuple[list[int], list[int]], named: str) -> None:
    pool = mx.arange(5).astype(mx.float32)
    copied = kernels.copy_blocks([pool], *(mx.array(ids, mx.int32) for ids in pairs))
    with pytest.raises(RuntimeError, match=rf"\[copy_blocks\] {named}"):
        mx.eval(copied)
    assert pool.tolist() == [0, 1, 2, 3, 4]


def test_a_pool_that_is_not_contiguous_is_refused() -> None:
    pool = mx.zeros((5, 4, 16, 2)).swapaxes(2, 3)
    mx.eval(pool)
    with pytest.raises(RuntimeError, match="k_pool must be row-contiguous"):
        mx.eval(kernels.kv_write(**{**write_arguments(), "k_pool": pool}))
    with pytest.raises(RuntimeError, match="must be row-contiguous"):
        mx.eval(kernels.paged_attention(**{**attention_arguments(), "k_pool": pool}))
    pool = mx.zeros((5, 4, 16, 1)).swapaxes(2, 3)[:, ::2]
    pools = {"keys": mx.zeros(pool.shape), "values": pool}
    with pytest.raises(RuntimeError, match="values must be row-contiguous"):
        mx.eval(kernels.norm_rope_write(**{**norm_rope_arguments(), **pools}))
