"""`mlxrt check --kernels`: the native operations on the default device beside the plain-MLX
reference, and how fast they are; a table to paste.

Attention's reference runs on the CPU: a GPU's own float32 products may be rounded to fewer bits.
The fused operations' runs beside them, since they round where MLX's own do on the same device.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mlxrt.check import fused_cases, kernel_cases
from mlxrt.check.kernel_cases import AttentionCase
from mlxrt.exit_code import ExitCode
from mlxrt.versions import installed_versions

SPEED_CELLS = ((1024, 1), (1024, 8), (4096, 1), (4096, 8), (16384, 1))
"""Context and batch."""
FRAGMENTED_STEPS = 200
FRAGMENTED_RMS_MAX = 5e-3
OVERWRITES = 30
BFLOAT16_ROUNDING = 2**-8


@dataclass(frozen=True, slots=True)
class Finding:
    """What one kind of test found.

    Attributes:
        excess: the largest difference in multiples of what is allowed.
        native: evaluations of the native operation; less than `cases` means that it was not used.
    """

    name: str
    cases: int
    native: int
    excess: float
    example: str = ""

    @property
    def passed(self) -> bool:
        """Whether every case ran natively and agreed."""
        return self.native >= self.cases and self.excess <= 1.0


def run_kernel_check(console: Console, cases: int, seed: int, with_speed: bool = True) -> ExitCode:
    """Tests every operation on MLX's default device, then measures a few cells; prints a table.

    Args:
        cases: random calls of each operation for each element type.
        seed: of the calls; the same seed gives the same calls everywhere.

    Returns:
        OK; ABI where the extension can't be loaded, has no kernels here or disagrees.
    """
    try:
        from mlxrt import kernels
    except ImportError as error:
        console.print(f"ABI: {error}", style="red", markup=False)
        return ExitCode.ABI
    console.print(f"kernels of {kernels.__name__} on {device_name()}, seed {seed}", markup=False)
    table = Table("operation", "calls", "ran natively", "difference / allowed", "result")
    failed = []
    try:
        for finding in _findings(cases, seed):
            table.add_row(
                finding.name, str(finding.cases), str(finding.native), f"{finding.excess:.2g}",
                "ok" if finding.passed else f"FAILED {finding.example}",
            )  # fmt: skip
            failed += [] if finding.passed else [finding]
    except RuntimeError as error:
        console.print(table)
        console.print(f"kernels: {error}", style="red", markup=False)
        return ExitCode.ABI
    console.print(table)
    if with_speed and not failed:
        console.print(_speed_table())
    return ExitCode.ABI if failed else ExitCode.OK


def device_name() -> str:
    """Returns MLX's default device, the machine and the versions, on one line."""
    device = mx.default_device()
    name = platform.processor() or platform.machine()
    if device.type == mx.gpu:
        name = str(mx.device_info().get("device_name", name))
    versions = installed_versions()
    return f"{device} ({name}), {platform.platform()}, mlx {versions['mlx']}"


def _findings(cases: int, seed: int) -> Iterator[Finding]:
    for dtype in kernel_cases.DTYPES:
        rng = np.random.default_rng([seed, kernel_cases.DTYPES.index(dtype)])
        for name, context_max in (("short", 90), ("long", 2500)):
            drawn = [
                kernel_cases.draw_attention(rng, context_max=context_max, dtypes=[dtype])
                for _ in range(cases if name == "short" else max(1, cases // 4))
            ]
            yield _attention(f"paged_attention, {name}, {str(dtype).split('.')[-1]}", drawn)
    rng = np.random.default_rng([seed, 10])
    yield _writes(rng, cases)
    yield _copies(rng, cases)
    for dtype in kernel_cases.DTYPES:
        rng = np.random.default_rng([seed, 20 + kernel_cases.DTYPES.index(dtype)])
        yield from _fused(rng, cases, dtype)
    yield _samples(np.random.default_rng([seed, 12]), 5 * cases)
    yield _fragmented(seed)
    yield _overwritten()


def _attention(name: str, drawn: list[AttentionCase]) -> Finding:
    from mlxrt import kernels
    from mlxrt.kernels import reference

    before, worst, example = _count("paged_attention"), 0.0, ""
    for case in drawn:
        call = kernel_cases.build_attention(case)
        actual = call.run(kernels.paged_attention)
        mx.eval(actual)
        with mx.stream(mx.cpu):
            excess = kernel_cases.excess(actual, call.run(reference.paged_attention))
        if excess > worst:
            worst, example = excess, str(case)
    return Finding(name, len(drawn), _count("paged_attention") - before, worst, example)


def _writes(rng: np.random.Generator, cases: int) -> Finding:
    from mlxrt import kernels
    from mlxrt.kernels import reference

    before, worst = _count("kv_write"), 0.0
    for _ in range(cases):
        arrays = kernel_cases.draw_write(rng).arrays
        expected = reference.kv_write(*arrays)
        mx.eval(expected)
        worst = max(worst, _bits_differ(kernels.kv_write(*arrays), expected))
    return Finding("kv_write", cases, _count("kv_write") - before, worst)


def _copies(rng: np.random.Generator, cases: int) -> Finding:
    from mlxrt import kernels
    from mlxrt.kernels import reference

    before, worst = _count("copy_blocks"), 0.0
    for _ in range(cases):
        call = kernel_cases.draw_copy(rng)
        arguments = call.pools, call.sources, call.destinations
        expected = reference.copy_blocks(*arguments)
        mx.eval(expected)
        worst = max(worst, _bits_differ(kernels.copy_blocks(*arguments), expected))
    return Finding("copy_blocks", cases, _count("copy_blocks") - before, worst)


def _samples(rng: np.random.Generator, cases: int) -> Finding:
    from mlxrt import kernels
    from mlxrt.kernels import reference

    before, worst, example = _count("sample"), 0.0, ""
    for case in range(cases):
        call = kernel_cases.draw_sample(rng)
        sampled = kernels.sample(call.logits, call.rules)
        mx.eval(sampled)
        with mx.stream(mx.cpu):
            differ = _bits_differ(sampled, reference.sample(call.logits, call.rules))
        if differ:
            worst, example = differ, f"case {case}: {call.logits.shape} {call.rules.tolist()}"
    return Finding("sample", cases, _count("sample") - before, worst, example)


def _fused(rng: np.random.Generator, cases: int, dtype: mx.Dtype) -> Iterator[Finding]:
    """The fused operations beside MLX's own on the same device, which round where they do."""
    from mlxrt import kernels
    from mlxrt.kernels import reference

    name = str(dtype).split(".")[-1]
    before, worst = _count("norm_rope_write"), 0.0
    for _ in range(cases):
        call = fused_cases.draw_norm_rope(rng, dtype=dtype)
        excess = fused_cases.norm_rope_excess(
            call, kernels.norm_rope_write, reference.norm_rope_write
        )
        worst = max(worst, excess)
    native = _count("norm_rope_write") - before
    yield Finding(f"norm_rope_write, {name}", cases, native, worst)
    before, worst = _count("add_rms_norm") + _count("swiglu"), 0.0
    for _ in range(cases):
        rows = fused_cases.draw_rows(rng, dtype=dtype)
        worst = max(worst, fused_cases.rows_excess(rows, kernels, reference))
    native = _count("add_rms_norm") + _count("swiglu") - before
    yield Finding(f"add_rms_norm, swiglu, {name}", 2 * cases, native, worst)


def _bits_differ(actual: list[mx.array] | tuple[mx.array, ...], expected: object) -> float:
    """Returns 0 where all arrays are equal, else infinity."""
    assert isinstance(expected, list | tuple)
    same = all(mx.array_equal(a, e).item() for a, e in zip(actual, expected, strict=True))
    return 0.0 if same else float("inf")


def _fragmented(seed: int) -> Finding:
    """Sequences grow one row a step through scattered blocks, writes and reads in one graph, no
    step waiting for the one before; the outputs' RMS difference from the reference is held below
    FRAGMENTED_RMS_MAX.
    """
    from mlxrt import kernels
    from mlxrt.kernels import reference

    rng = np.random.default_rng([seed, 11])
    sequences, heads, dim, block = 3, 2, 64, 16
    width = FRAGMENTED_STEPS // block + 1
    tables = rng.permutation(np.arange(1, sequences * width + 1)).reshape(sequences, width)
    pools = [mx.zeros((sequences * width + 1, block, heads, dim), mx.bfloat16) for _ in range(2)]
    truth = [np.zeros(pools[0].shape, np.float32) for _ in range(2)]
    block_tables, starts = mx.array(tables.astype(np.int32)), mx.arange(sequences + 1)
    before, squares, outputs = _count("paged_attention"), 0.0, []
    for step in range(FRAGMENTED_STEPS):
        rows = [_rows(rng, (sequences, heads, dim)) for _ in range(2)]
        query = _rows(rng, (sequences, 2 * heads, dim))
        slots = tables[:, step // block].astype(np.int64) * block + step % block
        pools = list(kernels.kv_write(pools[0], pools[1], rows[0], rows[1], mx.array(slots)))
        contexts = mx.full((sequences,), step + 1, dtype=mx.int32)
        after = [query, *pools, block_tables, starts.astype(mx.int32), contexts]
        out = kernels.paged_attention(*after, scale=dim**-0.5)
        mx.async_eval(out)  # type: ignore[no-untyped-call]
        for pool, row in zip(truth, rows, strict=True):
            pool.reshape(-1, heads, dim)[slots] = np.array(row.astype(mx.float32))
        outputs.append((query, contexts, out))
    for query, contexts, out in outputs[:: max(1, FRAGMENTED_STEPS // 40)]:
        arrays = [query, *(mx.array(p).astype(mx.bfloat16) for p in truth), block_tables,
                  starts.astype(mx.int32), contexts]  # fmt: skip
        with mx.stream(mx.cpu):
            expected = reference.paged_attention(*arrays, scale=dim**-0.5)
            error = (out.astype(mx.float32) - expected.astype(mx.float32)).square().mean()
            squares = max(squares, float(np.array(error)))
    native = _count("paged_attention") - before
    rms = squares**0.5 / FRAGMENTED_RMS_MAX
    return Finding("200 fragmented steps", FRAGMENTED_STEPS, native, rms)


def _overwritten() -> Finding:
    """One pool is written and read OVERWRITES times in one graph, by the kernel and by mlx's own
    gather in turn, ordered by nothing but the pool; each read must see what was written just before
    it.
    """
    from mlxrt import kernels

    heads, dim, block, count = 4, 128, 16, 64
    pools = [mx.zeros((count, block, heads, dim), mx.bfloat16) for _ in range(2)]
    rows = [mx.full((count * block, heads, dim), i + 1.0, mx.bfloat16) for i in range(OVERWRITES)]
    blocks = mx.arange(count)[::-1].astype(mx.int32)
    query = mx.ones((1, heads, dim), mx.bfloat16)
    lengths = [mx.array(v, mx.int32) for v in ([0, 1], [count * block])]
    slots = mx.arange(count * block).astype(mx.int64)
    mx.eval(pools, rows, blocks, query, lengths, slots)
    before, reads, seen = _reads(), [query], []
    for index, row in enumerate(rows):
        row = mx.depends(row, reads)  # what is written does not hang on what was read
        pools = list(kernels.kv_write(pools[0], pools[1], row, row, slots))
        if index % 2:
            reads = kernels.hold_pools([pool[blocks] for pool in pools], pools)
        else:
            arguments = [query, *pools, blocks[None], *lengths]
            reads = [kernels.paged_attention(*arguments, scale=dim**-0.5)]
        seen.append([mx.stack([read.min() for read in reads]).min(),
                     mx.stack([read.max() for read in reads]).max()])  # fmt: skip
    mx.eval(seen)
    values = np.array([[float(np.array(end.astype(mx.float32))) for end in ends] for ends in seen])
    worst = float(np.abs(values / np.arange(1, OVERWRITES + 1)[:, None] - 1).max())
    native = 2 * int((_reads() - before).min())
    name = f"{OVERWRITES} overwrites, hold_pools"
    return Finding(name, OVERWRITES, native, worst / BFLOAT16_ROUNDING)


def _reads() -> NDArray[np.int64]:
    return np.array([_count("paged_attention"), _count("hold_pools")])


def _rows(rng: np.random.Generator, shape: tuple[int, ...]) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(mx.bfloat16)


def _count(operation: str) -> int:
    from mlxrt import kernels

    return kernels.counters()[operation]


def _speed_table() -> Table:
    """A few cells of decode and of a prompt's chunk, beside what MLX does without the kernels."""
    from mlxrt.bench.attention import measure_cell
    from mlxrt.bench.attention_arms import Place

    table = Table(
        "context", "batch", "paged µs", "gather + SDPA µs", "gather / paged", "GB/s",
        title="decode attention, bfloat16, 16 query and 8 KV heads of 128, block 16",
    )  # fmt: skip
    for context, batch in SPEED_CELLS:
        cell = measure_cell(Place(context, batch, 16, "token_major", "bfloat16"), 0.2)
        assert cell.paged_us is not None and cell.paged_gb_per_s is not None
        table.add_row(
            str(context), str(batch), f"{cell.paged_us:.0f}", f"{cell.gather_us:.0f}",
            f"{cell.gather_us / cell.paged_us:.1f}", f"{cell.paged_gb_per_s:.0f}",
        )  # fmt: skip
    table.caption = f"write of one row per sequence and a chunk of 512: {_other_speeds()}"
    return table


def _other_speeds() -> str:
    from mlxrt import kernels

    case = AttentionCase((1024,), (512,), 8, 2, 128, 16, mx.bfloat16)
    call = kernel_cases.build_attention(case)
    chunk = _least_us(lambda: call.run(kernels.paged_attention))
    arrays = kernel_cases.draw_write(np.random.default_rng(0)).arrays
    write = _least_us(lambda: list(kernels.kv_write(*arrays)))
    return f"{write:.0f} µs, {chunk:.0f} µs"


def _least_us(run: Callable[[], mx.array | list[mx.array]]) -> float:
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        mx.eval(run())
        best = min(best, time.perf_counter() - start)
    return best * 1e6
