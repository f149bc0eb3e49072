"""Cases for the native kernels: pools full of NaN, finite only where a row may read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels

LARGE_MEMORY_BYTES_MIN = 12 << 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= LARGE_MEMORY_BYTES_MIN:
        return
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="touches 5 GB; this machine has less than 12"))


@pytest.fixture(scope="session")
def fixed_layout() -> list[str]:
    """Returns what to put before a sanitized program's command, so that its addresses are the same
    each time where the system allows it: older runtime libraries can't map their shadow now and
    then where addresses are drawn from a wide range."""
    wanted = ["setarch", "-R"]
    if shutil.which(wanted[0]) is None:
        return []
    tried = subprocess.run([*wanted, "true"], capture_output=True)
    return wanted if tried.returncode == 0 else []


@pytest.fixture(autouse=True)
def _kernel_settings() -> Iterator[None]:
    """Every test starts at zero counts and leaves the machine's own settings behind."""
    threads = kernels.num_threads()
    kernels.reset_counters()
    yield
    kernels.set_num_threads(threads)
    kernels.set_simd_level("auto")


@dataclass(frozen=True)
class AttentionCase:
    """Shapes and options of one paged_attention call."""

    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    num_kv_heads: int = 2
    group: int = 2
    key_dim: int = 64
    value_dim: int = 64
    block_size: int = 16
    window: int = 0
    softcap: float = 0.0
    with_sinks: bool = False
    padding_rows: int = 0
    q_dtype: mx.Dtype = mx.float32
    pool_dtype: mx.Dtype = mx.float32
    seed: int = 0


@dataclass
class AttentionInputs:
    """The arrays of a case, as paged_attention and its reference take them."""

    arrays: tuple[mx.array, ...]
    options: dict[str, object] = field(default_factory=dict)

    def run(self, attention: Callable[..., mx.array]) -> mx.array:
        return attention(*self.arrays, **self.options)


def build_attention(case: AttentionCase) -> AttentionInputs:
    rng = np.random.default_rng(case.seed)
    blocks_each = [-(-context // case.block_size) for context in case.contexts]
    width = max([1, *blocks_each]) + 1
    num_blocks = sum(blocks_each) + 3
    free = list(rng.permutation(np.arange(1, num_blocks)))
    tables = np.zeros((len(case.contexts), width), np.int32)
    shape = (num_blocks, case.block_size, case.num_kv_heads)
    k_pool = np.full((*shape, case.key_dim), np.nan, np.float32)
    v_pool = np.full((*shape, case.value_dim), np.nan, np.float32)
    for s, (context, rows) in enumerate(zip(case.contexts, case.rows, strict=True)):
        lowest = max(0, context - rows - case.window + 1) if case.window else 0
        for b in range(lowest // case.block_size, blocks_each[s]):
            tables[s, b] = free.pop()  # blocks wholly outside the window stay 0, full of NaN
        for position in range(lowest, context):
            block, offset = tables[s, position // case.block_size], position % case.block_size
            k_pool[block, offset] = rng.standard_normal((case.num_kv_heads, case.key_dim))
            v_pool[block, offset] = rng.standard_normal((case.num_kv_heads, case.value_dim))
    num_q_heads = case.num_kv_heads * case.group
    total = sum(case.rows) + case.padding_rows
    q = rng.standard_normal((total, num_q_heads, case.key_dim)).astype(np.float32)
    q[sum(case.rows) :] = np.nan
    sinks = rng.standard_normal(num_q_heads).astype(np.float32)
    return AttentionInputs(
        (
            mx.array(q).astype(case.q_dtype),
            mx.array(k_pool).astype(case.pool_dtype),
            mx.array(v_pool).astype(case.pool_dtype),
            mx.array(tables),
            mx.array(np.concatenate([[0], np.cumsum(case.rows)]).astype(np.int32)),
            mx.array(np.array(case.contexts, np.int32)),
        ),
        {
            "scale": case.key_dim**-0.5,
            "window": case.window,
            "softcap": case.softcap,
            "sinks": mx.array(sinks) if case.with_sinks else None,
        },
    )


def assert_close(actual: mx.array, expected: mx.array) -> None:
    """Both are rounded from float32 sums: they may differ by a rounding and the sums' order."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    step = {mx.float32: 2e-6, mx.bfloat16: 2**-7, mx.float16: 2**-10}[expected.dtype]
    a, b = (np.array(x.astype(mx.float32)) for x in (actual, expected))
    np.testing.assert_allclose(a, b, rtol=step, atol=2e-5)


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Whether two arrays hold the same bytes (NaN included)."""
    left, right = (np.array(x.view(mx.uint8)) for x in (a, b))
    return a.dtype == b.dtype and np.array_equal(left, right)


@pytest.fixture
def attention_case() -> type[AttentionCase]:
    return AttentionCase


@pytest.fixture
def build() -> Callable[[AttentionCase], AttentionInputs]:
    return build_attention


@pytest.fixture
def close() -> Callable[[mx.array, mx.array], None]:
    return assert_close


@pytest.fixture
def identical() -> Callable[[mx.array, mx.array], bool]:
    return same_bits
