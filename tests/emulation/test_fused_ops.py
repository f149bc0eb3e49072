"""The fused ops' kernels by the plan of the Metal host, on the emulator, beside MLX's operations
rounded as MLX's GPU kernels round them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from emulator import Fault, Machine, Order, Refused
from emulator.address_spaces import check_address_spaces, has_clang
from emulator.ops import Plan, Unserved, plan, run_plan

from mlxrt import kernels
from mlxrt.check import fused_cases
from mlxrt.check.fused_cases import NormRopeCall, excess, norm_rope_excess
from mlxrt.kernels import reference

ELEMENTS = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
DRAWS = 8
Operation = Callable[..., Any]


def raw(array: mx.array) -> np.ndarray[Any, Any]:
    """Returns the bits as numpy holds them: bfloat16 as uint16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def cooked(array: np.ndarray[Any, Any], dtype: mx.Dtype) -> mx.array:
    """Returns what `raw` took apart."""
    return mx.array(array).view(dtype) if dtype == mx.bfloat16 else mx.array(array)


def norm_rope_on_a_gpu(**arguments: Any) -> tuple[mx.array, ...]:
    """The reference, whose rope rounds once: angles and products are float32 on a GPU."""
    dtype, heads = arguments["qkv"].dtype, arguments["num_q_heads"]
    kv_heads, head_dim = arguments["num_kv_heads"], arguments["keys"].shape[3]
    split = arguments["qkv"].reshape(-1, heads + 2 * kv_heads, head_dim)

    def normed(part: mx.array, weight: mx.array | None) -> mx.array:
        return part if weight is None else mx.fast.rms_norm(part, weight, arguments["eps"])

    parts = [
        normed(split[:, :heads], arguments["q_norm"]),
        normed(split[:, heads : heads + kv_heads], arguments["k_norm"]),
        split[:, heads + kv_heads :],
    ]
    widened = mx.concatenate(parts, axis=1).astype(mx.float32).reshape(len(split), -1)
    pools = {name: arguments[name].astype(mx.float32) for name in ("keys", "values")}
    without = {"qkv": widened, "q_norm": None, "k_norm": None}
    results = reference.norm_rope_write(**{**arguments, **pools, **without})
    return tuple(result.astype(dtype) for result in results)


def swiglu_on_a_gpu(gate_up: mx.array) -> mx.array:
    """The reference, each step of whose sigmoid rounds."""
    gate, up = mx.split(gate_up, 2, axis=-1)

    def rounded(x: mx.array) -> mx.array:
        return x.astype(gate.dtype).astype(mx.float32)

    power = rounded(mx.exp(mx.abs(gate.astype(mx.float32))))
    tail = rounded(1 / rounded(1 + power))
    return gate * mx.where(gate < 0, tail, 1 - tail).astype(gate.dtype) * up


def norm_rope_plan(arguments: dict[str, Any], pool: mx.array) -> Plan:
    """Returns the Metal host's plan of a call."""
    qkv = arguments["qkv"]
    shape = {
        "element": ELEMENTS[qkv.dtype], "pool_element": ELEMENTS[pool.dtype],
        "num_rows": qkv.shape[0], "num_q_heads": arguments["num_q_heads"],
        "num_kv_heads": arguments["num_kv_heads"], "head_dim": pool.shape[3],
        "pairs": arguments["inverse_frequencies"].size,
        "num_slots": pool.shape[0] * pool.shape[1],
        "traditional": int(arguments["traditional"]),
        "norms_queries": int(arguments["q_norm"] is not None),
        "norms_keys": int(arguments["k_norm"] is not None), "eps": arguments["eps"],
        "scale": arguments["scale"],
    }  # fmt: skip
    return plan("norm_rope_write", *shape.items())


def emulated_norm_rope(order: Order, changed: Callable[[Plan], Plan] = lambda p: p) -> Operation:
    """Returns norm_rope_write on the emulator; `changed` may plant something."""

    def run(**arguments: Any) -> tuple[mx.array, ...]:
        pool, qkv = arguments["keys"], arguments["qkv"]
        what = changed(norm_rope_plan(arguments, pool))
        names = ("qkv", "positions", "inverse_frequencies", "slots", "keys", "values")
        norms = [arguments[n] for n in ("q_norm", "k_norm") if arguments[n] is not None]
        inputs = [raw(a) for a in (*(arguments[name] for name in names), *norms)]
        queries = np.empty((qkv.shape[0], arguments["num_q_heads"], pool.shape[3]),
                           raw(qkv).dtype)  # fmt: skip
        outputs = run_plan(Machine(order, 1), what, inputs, [queries, 4, 5])
        return tuple(cooked(out, qkv.dtype) for out in outputs)

    return run


def row_plan(op: str, dtype: mx.Dtype, rows: int, size: int) -> Plan:
    """Returns the Metal host's plan of add_rms_norm or swiglu."""
    shape = {"element": ELEMENTS[dtype], "num_rows": rows, "size": size, "eps": 1e-6}
    return plan(op, *shape.items())


def emulated_add_norm(
    x: mx.array, residual: mx.array, weight: mx.array, order: Order, what: Plan | None = None
) -> tuple[mx.array, ...]:
    """Returns what the emulator computes."""
    what = what or row_plan("add_rms_norm", x.dtype, *x.shape)
    out = run_plan(Machine(order, 2), what, [raw(a) for a in (x, residual, weight)], [raw(x)] * 2)
    return tuple(cooked(a, x.dtype) for a in out)


def emulated_swiglu(gate_up: mx.array, order: Order, what: Plan | None = None) -> mx.array:
    """Returns what the emulator computes."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    what = what or row_plan("swiglu", gate_up.dtype, rows, size)
    (out,) = run_plan(Machine(order, 3), what, [raw(gate_up)], [raw(gate_up[:, :size])])
    return cooked(out, gate_up.dtype)


def drawn(dtype: mx.Dtype, seed: int) -> NormRopeCall:
    return fused_cases.draw_norm_rope(np.random.default_rng(seed), dtype=dtype, rows_max=6)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_norm_rope_write(dtype: mx.Dtype) -> None:
    traditional, norms, partial = set(), set(), set()
    for seed in range(DRAWS):
        call = drawn(dtype, seed)
        run = emulated_norm_rope(Order(seed % 4))
        assert norm_rope_excess(call, run, norm_rope_on_a_gpu) <= 1, seed
        if dtype == mx.float32:
            assert norm_rope_excess(call, run, kernels.norm_rope_write) <= 1, seed
        traditional.add(call.arguments["traditional"])
        norms.add((call.arguments["q_norm"] is None, call.arguments["k_norm"] is None))
        partial.add(2 * call.arguments["inverse_frequencies"].size < call.pool_shape[3])
    assert len(traditional) == 2 and len(norms) >= 3 and len(partial) == 2


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_rows(dtype: mx.Dtype) -> None:
    for seed in range(DRAWS):
        rows = fused_cases.draw_rows(np.random.default_rng(seed), dtype=dtype, rows_max=3)
        arguments = rows.x, rows.residual, rows.weight
        total, normed = emulated_add_norm(*arguments, Order(seed % 4))
        assert mx.array_equal(total, rows.x + rows.residual)
        assert excess(normed, reference.add_rms_norm(*arguments, 1e-6)[1]) <= 1, seed
        gated = emulated_swiglu(rows.gate_up, Order(seed % 4))
        assert excess(gated, swiglu_on_a_gpu(rows.gate_up)) <= 1, seed
        if dtype == mx.float32:
            assert excess(gated, kernels.swiglu(rows.gate_up)) <= 1, seed


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_swiglu_of_every_gate(dtype: mx.Dtype) -> None:
    gate = mx.array(np.arange(1 << 16, dtype=np.uint16)).view(dtype).reshape(8, -1)
    gate_up = mx.concatenate([gate, mx.ones_like(gate)], axis=1)
    assert excess(emulated_swiglu(gate_up, Order.ASCENDING), swiglu_on_a_gpu(gate_up)) <= 1


def test_order_changes_no_bit() -> None:
    call = drawn(mx.bfloat16, 2)
    rows = fused_cases.draw_rows(np.random.default_rng(1), dtype=mx.bfloat16, rows_max=3)
    found = set()
    for order in Order:
        arrays = [*call.run(emulated_norm_rope(order)),
                  *emulated_add_norm(rows.x, rows.residual, rows.weight, order)]  # fmt: skip
        found.add(str([raw(a).tolist() for a in arrays]))
    assert len(found) == 1


def test_a_slot_past_the_pool_is_not_written() -> None:
    call = drawn(mx.float32, 1)
    slots = mx.full(call.arguments["slots"].shape, call.pool_shape[0] * call.pool_shape[1])
    past = dataclasses.replace(call, arguments={**call.arguments, "slots": slots.astype(mx.int64)})
    queries, keys, values = past.run(emulated_norm_rope(Order.SHUFFLED))
    assert mx.isnan(keys).all() and mx.isnan(values).all() and not mx.isnan(queries).any()


def test_what_no_kernel_serves_is_refused_with_the_reason() -> None:
    shape = {"head_dim": 64, "pairs": 32, "num_rows": 1, "num_q_heads": 1, "num_kv_heads": 1}
    for changed, reason in (
        ({"head_dim": 60}, "head size 60"), ({"pairs": 3}, "odd number of pairs, 3"),
        ({"pool_element": 1}, "different dtypes"), ({"num_slots": 2**31}, "2.31 slots"),
    ):  # fmt: skip
        with pytest.raises(Unserved, match=reason):
            plan("norm_rope_write", *{**shape, **changed}.items())
    for op in ("add_rms_norm", "swiglu"):
        with pytest.raises(Unserved, match="rows of 12 elements"):
            row_plan(op, mx.float16, 1, 12)


def test_no_rows_launch_nothing() -> None:
    assert not row_plan("swiglu", mx.float32, 0, 8).dispatches
    assert not row_plan("add_rms_norm", mx.float32, 0, 8).dispatches


def planted(what: Plan, old: str, new: str) -> Plan:
    """Returns the plan with the change in every text."""
    texts = {library: text.replace(old, new) for library, text in what.texts.items()}
    assert texts != what.texts, old
    return dataclasses.replace(what, texts=texts)


NORM_ROPE_BUGS = {
    "a slot past the pool": ("slot >= params.num_slots", "slot > params.num_slots + 99"),
    "the neighbour's head": ("(row * heads + index) * words", "(row * heads + index + 1) * words"),
    "keys over values": ("DEVICE uint* to = v_pool", "DEVICE uint* to = k_pool"),
    "one sum too short": ("mask = LANES / 2", "mask = LANES / 4"),
    "no norm": ("const float norm = rounded(value * factor);", "const float norm = value;"),
    "the other turn": ("first * c - second * s", "first * c + second * s"),
    "one frequency for two": ("inverse_frequencies[2 * i + 1]", "inverse_frequencies[2 * i]"),
    "the rest left out": ("i < params.head_dim / 2; i += LANES) {\n    store_neighbours",
                          "i < params.pairs; i += LANES) {\n    store_neighbours"),
    "a head too many": ("if (index >= heads)", "if (index > heads)"),
}  # fmt: skip


@pytest.mark.parametrize("name", NORM_ROPE_BUGS)
def test_planted_bugs_in_norm_rope_write_are_found(name: str) -> None:
    rng = np.random.default_rng(4)
    call = fused_cases.draw_norm_rope(rng, dtype=mx.bfloat16, head_dims=[80], rows_max=3)
    arguments = {
        **call.arguments, "q_norm": mx.full((80,), 1.5, mx.bfloat16), "traditional": False,
        "inverse_frequencies": mx.array(fused_cases.draw_inverse_frequencies(rng, 20)),
    }  # fmt: skip
    rows = arguments["qkv"].shape[0]
    beyond = np.arange(rows, dtype=np.int64)
    beyond[-1] = call.pool_shape[0] * call.pool_shape[1]
    arguments["slots"] = mx.array(beyond)
    call = dataclasses.replace(call, arguments=arguments)

    def truth(**arguments: Any) -> tuple[mx.array, ...]:
        skipped = beyond.copy()
        skipped[-1] = -1
        return norm_rope_on_a_gpu(**{**arguments, "slots": mx.array(skipped)})

    assert norm_rope_excess(call, emulated_norm_rope(Order.SHUFFLED), truth) <= 1
    run = emulated_norm_rope(Order.SHUFFLED, lambda p: planted(p, *NORM_ROPE_BUGS[name]))
    try:
        assert norm_rope_excess(call, run, truth) > 1
    except Fault:
        return


ADD_NORM_BUGS = {
    "no barrier": ("THREADGROUP_BARRIER();", ""),
    "one sum for all": ("squares += sums[s];", "squares = sums[0];"),
    "a vector too many": ("i < params.vectors; i += THREADS) {\n    float values[VECTOR_ELEMENTS];"
                          "\n    float weights",
                          "i <= params.vectors; i += THREADS) {\n    float values[VECTOR_ELEMENTS];"
                          "\n    float weights"),
    "the sum before it is rounded": ("rounded(values[e] + added[e])", "values[e]"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADD_NORM_BUGS)
def test_planted_bugs_in_add_rms_norm_are_found(name: str) -> None:
    rng = np.random.default_rng(7)
    x, residual = (mx.array(rng.standard_normal((2, 2048)).astype(np.float32)) for _ in range(2))
    arguments = x, residual, mx.ones(2048)
    what = planted(row_plan("add_rms_norm", x.dtype, *x.shape), *ADD_NORM_BUGS[name])
    expected = reference.add_rms_norm(*arguments, 1e-6)
    try:
        out = emulated_add_norm(*arguments, Order.SHUFFLED, what)
    except Fault:
        return
    assert max(excess(a, e) for a, e in zip(out, expected, strict=True)) > 1


def test_planted_bugs_in_swiglu_are_found() -> None:
    gate_up = mx.array(np.random.default_rng(5).standard_normal((3, 128)).astype(np.float32))
    what = row_plan("swiglu", mx.float32, 3, 64)
    for old, new in (
        ("(2 * row + 1) * params.vectors", "2 * row * params.vectors"),
        ("value < 0.0f ? tail", "value > 0.0f ? tail"),
    ):
        out = emulated_swiglu(gate_up, Order.SHUFFLED, planted(what, old, new))
        assert excess(out, swiglu_on_a_gpu(gate_up)) > 1
    with pytest.raises(Fault):
        emulated_swiglu(gate_up, Order.SHUFFLED, planted(what, "i >= params.vectors", "i > 999"))


@pytest.mark.skipif(not has_clang(), reason="clang comes with ziglang")
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_address_spaces(dtype: mx.Dtype) -> None:
    call = drawn(dtype, 0)
    pool = mx.zeros(call.pool_shape, dtype)
    plans = [norm_rope_plan(call.arguments, pool), row_plan("add_rms_norm", dtype, 1, 64),
             row_plan("swiglu", dtype, 1, 64)]  # fmt: skip
    texts = [text for what in plans for text in what.texts.values()]
    assert len(texts) == 3
    for text in texts:
        check_address_spaces(text)
        with pytest.raises(Refused):
            check_address_spaces(text.replace("DEVICE const uint* row, int index",
                                              "THREAD const uint* row, int index")
                                 .replace("THREADGROUP float* sums", "DEVICE float* sums")
                                 .replace("const long row = GROUP_X;\n  const int i",
                                          "*gate_up = *out; const long row = GROUP_X;\n  int i"))
