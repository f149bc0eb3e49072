"""The kernels' operations in plain MLX: the truth that every native kernel is tested against.

Functional (a write returns a new pool), slow, and independent of the native extension. Signatures
are those of the native operations; shapes are explained in `_native.pyi`. These functions read
their integer arguments on the host, so they evaluate inside: tests and the gather path's oracle,
not steps.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def kv_write(
    k_pool: mx.array, v_pool: mx.array, keys: mx.array, values: mx.array, slots: mx.array
) -> tuple[mx.array, mx.array]:
    """Returns copies of the pools with row t of keys and values in slot slots[t], if it is one."""
    chosen = np.flatnonzero(np.array(slots) >= 0)
    if not len(chosen):
        return k_pool, v_pool
    rows = mx.array(chosen)
    return (
        _with_rows(k_pool, slots[rows], keys[rows]),
        _with_rows(v_pool, slots[rows], values[rows]),
    )


def _with_rows(pool: mx.array, slots: mx.array, rows: mx.array) -> mx.array:
    flat = mx.array(pool).reshape(-1, *pool.shape[2:])
    flat[slots] = rows.astype(pool.dtype)
    return flat.reshape(pool.shape)


def copy_blocks(pools: list[mx.array], sources: mx.array, destinations: mx.array) -> list[mx.array]:
    """Returns copies of the pools with block sources[i] in block destinations[i]."""
    pairs = zip(np.array(sources).tolist(), np.array(destinations).tolist(), strict=True)
    chosen = [(s, d) for s, d in pairs if s >= 0 and d >= 0]
    if not chosen:
        return list(pools)
    read = mx.array([s for s, _ in chosen])
    write = mx.array([d for _, d in chosen])
    copies = []
    for pool in pools:
        copy = mx.array(pool)
        copy[write] = pool[read]
        copies.append(copy)
    return copies


def hold_pools(arrays: list[mx.array], pools: list[mx.array]) -> list[mx.array]:
    """Returns the arrays: where a write makes a new pool, none overtakes a read."""
    return list(arrays)


def paged_attention(
    q: mx.array,
    k_pool: mx.array,
    v_pool: mx.array,
    block_tables: mx.array,
    query_start: mx.array,
    context_len: mx.array,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: mx.array | None = None,
) -> mx.array:
    """Returns causal attention of each sequence's rows over its blocks, computed in float32."""
    tables = np.array(block_tables)
    starts = np.array(query_start).tolist()
    contexts = np.array(context_len).tolist()
    out = mx.zeros((q.shape[0], q.shape[1], v_pool.shape[3]), mx.float32)
    for s, context in enumerate(contexts):
        for row in range(starts[s], starts[s + 1]):
            position = context - (starts[s + 1] - row)
            first = max(0, position - window + 1) if window else 0
            if context <= 0 or position < 0:
                continue
            keys = _gather(k_pool, tables[s], first, position + 1)
            values = _gather(v_pool, tables[s], first, position + 1)
            out[row] = _attend(q[row].astype(mx.float32), keys, values, scale, softcap, sinks)
    return out.astype(q.dtype)


def norm_rope_write(
    qkv: mx.array,
    q_norm: mx.array | None,
    k_norm: mx.array | None,
    eps: float,
    positions: mx.array,
    inverse_frequencies: mx.array,
    scale: float,
    traditional: bool,
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    num_q_heads: int,
    num_kv_heads: int,
) -> tuple[mx.array, mx.array, mx.array]:
    """Returns the queries, and copies of the pools with the rows' keys and values.

    By mx.fast on the default device. Its rope takes frequencies: the angles are the very same where
    1 / (1 / f) is f again for each inverse frequency f.
    """
    head_dim = keys.shape[3]
    heads = qkv.reshape(-1, num_q_heads + 2 * num_kv_heads, 1, head_dim)
    with np.errstate(divide="ignore"):
        freqs = mx.array(np.float32(1) / np.array(inverse_frequencies))

    def finish(part: mx.array, weight: mx.array | None) -> mx.array:
        if not part.size:
            return part[:, :, 0]
        normed = part if weight is None else mx.fast.rms_norm(part, weight, eps)
        return mx.fast.rope(
            normed, 2 * freqs.size, traditional=traditional, base=None, scale=scale,
            offset=positions, freqs=freqs,
        )[:, :, 0]  # fmt: skip

    queries = finish(heads[:, :num_q_heads], q_norm)
    new_keys = finish(heads[:, num_q_heads : num_q_heads + num_kv_heads], k_norm)
    new_values = heads[:, num_q_heads + num_kv_heads :, 0]
    return (queries, *kv_write(keys, values, new_keys, new_values, slots))


def add_rms_norm(
    x: mx.array, residual: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """Returns the sum and its RMS norm, by mx.fast on the default device."""
    total = x + residual
    return total, mx.fast.rms_norm(total, weight, eps)


def swiglu(gate_up: mx.array) -> mx.array:
    """Returns silu of each row's first half times its second half."""
    gate, up = mx.split(gate_up, 2, axis=-1)
    return gate * mx.sigmoid(gate) * up


def _gather(pool: mx.array, table: np.ndarray, first: int, end: int) -> mx.array:
    """Positions [first, end) of a sequence as [positions, num_kv_heads, head_dim] float32.

    Only visible slots are taken, so that nothing else is ever multiplied, not even by zero.
    """
    positions = np.arange(first, end)
    slots = table[positions // pool.shape[1]].astype(np.int64) * pool.shape[1]
    slots += positions % pool.shape[1]
    return pool.reshape(-1, *pool.shape[2:])[mx.array(slots)].astype(mx.float32)


def _attend(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    softcap: float,
    sinks: mx.array | None,
) -> mx.array:
    group = q.shape[0] // keys.shape[1]
    grouped = q.reshape(keys.shape[1], group, q.shape[1])
    scores = scale * (grouped @ keys.transpose(1, 2, 0))
    if softcap:
        scores = softcap * mx.tanh(scores / softcap)
    if sinks is not None:
        column = sinks.astype(mx.float32).reshape(keys.shape[1], group, 1)
        scores = mx.concatenate([column, scores], axis=-1)
    weights = mx.softmax(scores, axis=-1)
    if sinks is not None:
        weights = weights[..., 1:]
    return (weights @ values.transpose(1, 0, 2)).reshape(q.shape[0], -1)


def sample(logits: mx.array, rules: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Returns tokens, finite and least of each row, bit for bit those of the native operation."""
    values, table = np.array(logits.astype(mx.float32)), np.array(rules)
    greedy = np.zeros(table.shape[1], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = [
            _sample_row(row, table[i] if i < len(table) else greedy) for i, row in enumerate(values)
        ]
    tokens, finite, least = zip(*rows, strict=True) if rows else ((), (), ())
    return (
        mx.array(np.array(tokens, np.int32)),
        mx.array(np.array(finite, np.bool_)),
        mx.array(np.array(least, np.float32)),
    )


def _sample_row(row: np.ndarray, rules: np.ndarray) -> tuple[int, bool, float]:
    finite = bool(np.isfinite(row).all())
    largest = row.max()
    if np.isnan(row).any() or not np.isfinite(largest):
        return 0, finite, -np.inf
    temperature, top_k, top_p, min_p_depth, uniform = rules
    if not temperature > 0:
        return int(row.argmax()), finite, -np.inf
    depths = (largest - row) / temperature
    weights = np.where(np.isnan(depths), 0, sampling_weights(depths))
    kept = depths <= min_p_depth if min_p_depth >= 0 else np.ones(len(row), np.bool_)
    if 1 <= top_k < len(row):
        kept &= depths <= np.sort(depths)[int(top_k) - 1]
    if top_p < 1:
        total = int(weights[kept].sum())
        target = max(1, -(-total * _fraction(top_p) >> 32) if top_p > 0 else 1)
        order = np.argsort(np.where(kept, depths, np.inf), kind="stable")
        sums = np.cumsum(np.where(kept, weights, 0)[order])
        kept &= depths <= depths[order][int(np.searchsorted(sums, target))]
    sums = np.cumsum(np.where(kept, weights, 0))
    below = int(sums[-1]) * _fraction(uniform) >> 32
    token = int(np.searchsorted(sums, below, side="right"))
    return token, finite, float(row[kept].min())


def sampling_weights(depths: np.ndarray) -> np.ndarray:
    """Returns e^-depth in units of 2^-40, rounded down, of float32 depths: uint64.

    Source: the polynomial of Cephes' expf (S. Moshier, public domain); every operation rounds to
    float32.
    """
    one = np.float32
    x = np.minimum(depths.astype(one), one(43))
    n = np.rint(x * one(1.44269504088896340736))
    r = (n * one(0.693359375) - x) + n * one(-2.12194440e-4)
    p = np.full_like(x, 1.9875691500e-4)
    for coefficient in (
        1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    ):  # fmt: skip
        p = p * r + one(coefficient)
    y = (p * (r * r) + r) + one(1)
    mantissa, exponent = np.frexp(y)
    shift = n.astype(np.int64) - exponent + 1
    units = np.ldexp(mantissa.astype(np.float64), 24).astype(np.uint64) << np.uint64(17)
    return units >> shift.astype(np.uint64)


def _fraction(share: float) -> int:
    """The share in units of 2^-32, rounded down."""
    return int(np.float32(share) * np.float32(2.0**32)) if 0 <= share < 1 else 0
