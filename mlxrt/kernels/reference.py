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
