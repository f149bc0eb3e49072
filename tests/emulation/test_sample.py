"""The sampling kernel by the plan of the Metal host, on the emulator: the bits of the reference."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from emulator import Fault, Machine, Order, Refused
from emulator.address_spaces import check_address_spaces, has_clang
from emulator.ops import Plan, plan, run_plan

from mlxrt import kernels
from mlxrt.check import kernel_cases
from mlxrt.check.kernel_cases import SampleCall
from mlxrt.kernels import reference

ELEMENTS = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
OFF = [1.0, 0.0, 1.0, np.inf]
"""Temperature, and rules that change nothing."""
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def sample_plan(call: SampleCall) -> Plan:
    """Returns the Metal host's plan of a call."""
    rows, vocabulary = call.logits.shape
    shape = {
        "element": ELEMENTS[call.logits.dtype], "num_rows": rows, "vocabulary": vocabulary,
        "rule_rows": call.rules.shape[0],
    }  # fmt: skip
    return plan("sample", *shape.items())


def emulated(call: SampleCall, order: Order, seed: int = 0, what: Plan | None = None) -> Arrays:
    """Returns tokens, finite and least as the emulator computes them."""
    logits = call.logits.view(mx.uint16) if call.logits.dtype == mx.bfloat16 else call.logits
    rows = len(logits)
    outputs = [np.empty(rows, np.int32), np.empty(rows, np.uint8), np.empty(rows, np.float32)]
    inputs = [np.array(logits), np.array(call.rules)]
    tokens, finite, least = run_plan(
        Machine(order, seed), what or sample_plan(call), inputs, outputs
    )
    return tokens, finite.astype(bool), least


def expected(call: SampleCall) -> Arrays:
    """Returns the same by the reference, and asserts that the CPU's kernel agrees."""
    arrays = [np.array(a) for a in reference.sample(call.logits, call.rules)]
    for one, other in zip(kernels.sample(call.logits, call.rules), arrays, strict=True):
        np.testing.assert_array_equal(np.array(one), other)
    return arrays[0], arrays[1], arrays[2]


def call_of(logits: np.ndarray, rules: list[list[float]], dtype: mx.Dtype) -> SampleCall:
    """Builds a call of NumPy logits."""
    return SampleCall(
        mx.array(logits.astype(np.float32)).astype(dtype), mx.array(np.array(rules, np.float32))
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_calls(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for draw in range(2):
        call = kernel_cases.draw_sample(rng, vocabulary_max=2500, rows_max=4)
        actual = emulated(call, Order((seed + draw) % 4), seed)
        for one, other in zip(actual, expected(call), strict=True):
            np.testing.assert_array_equal(one, other, str(call.rules.tolist()))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_rows_that_begin_anywhere(dtype: mx.Dtype) -> None:
    """Rows of 1,537 logits of two bytes begin at no multiple of four; others are read by vectors,
    unless they begin elsewhere as a whole.
    """
    rules = [[0.8, 40, 0.9, 4.0, 0.7], [1, 0, 0.8, np.inf, 0.2], [0, 0, 1, 0, 0], [*OFF, 0.999]]
    for vocabulary, by_vectors in ((1537, 0), (1536, 1)):
        logits = np.random.default_rng(3).standard_normal((4, vocabulary)) * 2
        call = call_of(logits, rules, dtype)
        what = sample_plan(call)
        for dispatch in what.dispatches:
            params = np.frombuffer(dispatch.params, np.int32).tolist()
            assert params == [vocabulary, 4, by_vectors, 1]
        for one, other in zip(emulated(call, Order.SHUFFLED), expected(call), strict=True):
            np.testing.assert_array_equal(one, other)


def test_order_changes_no_bit() -> None:
    logits = np.random.default_rng(4).standard_normal((3, 1100)) * 3
    rules = [[0.9, 100, 0.9, np.inf, 0.9], [1, 0, 0.95, np.inf, 0.5], [*OFF, 0.5]]
    call = call_of(logits, rules, mx.float32)
    found = {repr([a.tolist() for a in emulated(call, order, 5)]) for order in Order}
    assert len(found) == 1


def test_thresholds_among_ties_and_far_apart() -> None:
    """Ranges of keys that do not shrink at once: few values, values close together, and a mask."""
    rng = np.random.default_rng(6)
    few = rng.choice([0.0, -1.0, -1.0, -8.0], 1300)
    close = 1.0 + rng.integers(0, 5, 1300) * 2.0**-23
    masked = np.where(rng.random(1300) < 0.99, -np.inf, rng.standard_normal(1300))
    steep = -np.exp(rng.uniform(-60, 60, 1300))
    logits = np.stack([few, few, close, close, masked, masked, steep, steep])
    rules = [[1.0, 700, 1.0, np.inf, 0.9], [2.0, 0, 0.6, np.inf, 0.9]] * 4
    call = call_of(logits, rules, mx.float32)
    for one, other in zip(emulated(call, Order.DESCENDING), expected(call), strict=True):
        np.testing.assert_array_equal(one, other)


def test_min_p_with_temperatures_of_any_size() -> None:
    """Where a depth times the temperature is no key: many keys of one depth, or none."""
    logits = np.random.default_rng(9).standard_normal((7, 600))
    logits[1] *= 2.0**-120
    logits[5:] *= 1e30
    temperatures = [1e30, 2.0**-126, 2.0**-126, 3.0, 3.0, 1e38, 0.1]
    depths = [1e-30, 40.0, 0.5, 0.0, 1.0 / 3.0, 10.0, 9.0]
    rules = [[t, 0, 1, d, 0.6] for t, d in zip(temperatures, depths, strict=True)]
    call = call_of(logits, rules, mx.float32)
    for one, other in zip(emulated(call, Order.SHUFFLED), expected(call), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_a_row() -> None:
    """Rows of three parts, the last of them small; what is drawn lies in each, and begins there."""
    logits = np.round(np.random.default_rng(8).standard_normal((8, 4101)) * 4) / 8
    logits[1] = np.where(np.arange(4101) < 2048, 0.0, -np.inf)
    logits[2] = logits[1][::-1]
    logits[3, 4100] = logits[4, 2047] = logits[4, 2048] = 9.0
    rules = [[*OFF, 0.999], [*OFF, 1 - 2.0**-24], [*OFF, 0.0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0],
             [1, 0, 0.9, np.inf, 0.6], [2, 3000, 0.9, 3.0, 0.7],
             [1, 2500, 1, np.inf, 0.4]]  # fmt: skip
    call = call_of(logits, rules, mx.float32)
    grids = [dispatch.grid for dispatch in sample_plan(call).dispatches]
    assert grids == [(3, 8, 1), (3, 8, 1), (3, 8, 1), (8, 1, 1)]
    tokens = expected(call)[0]
    assert tokens[3:5].tolist() == [4100, 2047] and tokens[1] == 2047 and tokens[2] == 2053
    for one, other in zip(emulated(call, Order.SIMDGROUPS_APART), expected(call), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_as_many_candidates_as_there_is_room_for(dtype: mx.Dtype) -> None:
    """A part lists a quarter of its tokens: so many, and one more, which it must not lose."""
    room = 512 if dtype == mx.float32 else 1024
    logits = np.full((4, 4 * room), -30.0)
    logits[:, 1] = 0.0
    for row in range(4):
        logits[row, 3 : 3 * (room + row % 2) + 3 : 3] = -1.0
    last = 3 * room
    rules = [[1, 0, 0.999, np.inf, 1 - 2.0**-24]] * 2 + [[1, 2000, 0.999, np.inf, 1 - 2.0**-24]] * 2
    call = call_of(logits, rules, dtype)
    tokens = expected(call)[0]
    assert tokens[:2].tolist() == [last, last + 3]
    for one, other in zip(emulated(call, Order.SHUFFLED), expected(call), strict=True):
        np.testing.assert_array_equal(one, other)


PLANTED = {
    "no barrier before bins are added up": (
        "  THREADGROUP_BARRIER();\n  for (int b = place", "  for (int b = place"),
    "no barrier before bins are cleared": (
        "  THREADGROUP_BARRIER();\n  clear_bins", "  clear_bins"),
    "no barrier before candidates are read": (
        "  THREADGROUP_BARRIER();\n  return total", "  return total"),
    "candidates that others have too": ("together += other;", ""),
    "candidates of a simd-group alone": ("s < place.simdgroup ? uint(memory[s]) : 0u", "0u"),
    "more candidates than there is room for": ("is_there && at < CANDIDATES", "is_there"),
    "candidates read that had no room": (
        "<= SAMPLE_CANDIDATE_CHUNKS * VECTOR_ELEMENTS)", ">= 0)"),
    "nothing behind the candidates": ("i < CANDIDATES;", "i < total;"),
    "the candidates of another part": (
        "[part * SAMPLE_CANDIDATE_CHUNKS", "[first_part * SAMPLE_CANDIDATE_CHUNKS"),
    "candidates left out of the finer bins": (
        "place.index * VECTOR_ELEMENTS < count", "2 * place.index * VECTOR_ELEMENTS < count"),
    "tokens to count left out of the candidates": (
        "search.is_sought && search.is_weighted ? search.low : 0u", "search.low"),
    "no barrier before sums take their place": (
        "simdgroup % BINS);\n  THREADGROUP_BARRIER();\n", "simdgroup % BINS);\n"),
    "bins not cleared": ("memory[b * THREADS + place.index] = 0u;", ""),
    "a bin for two": ("place.index] += amounts[e]", "place.index / 2] += amounts[e]"),
    "half of a bin": ("t < THREADS; t += LANES", "t < THREADS; t += 2 * LANES"),
    "the bins of another part": ("(first_part + GROUP_X) * BINS", "first_part * BINS"),
    "a part left out of the bins": ("p = place.simdgroup; p < parts;",
                                    "p = place.simdgroup; p + 1 < parts;"),
    "a part left out of the extent": ("p = place.lane; p < parts;",
                                      "p = place.lane; p + 1 < parts;"),
    "a bin that is not all kept": ("place.lane < found.before[r]", "place.lane <= found.before[r]"),
    "tokens counted twice": ("if (key >= kept.unsummed) {", "{"),
    "tokens not counted": ("while (bits != 0u)", "if (bits != 0u)"),
    "one logit too many": (
        "index < row.count ? uint(row.logits[index]) : row.padding", "uint(row.logits[index])"),
    "padding that counts": ("found.padding = INFINITE_LOGIT;", "found.padding = 0u;"),
    "a target not rounded up": ("share_of(total, search->fraction, true)", "0u * total + 1u"),
    "a limit one key early": ("depth_of(row, search.low));", "depth_of(row, search.low)) - 1u;"),
    "the first limit that is near": (" && depth_of(row, key + 1u) > depth", ""),
    "a draw at its boundary": ("sums[chosen] <= *below", "sums[chosen] < *below"),
    "parts in another order": ("= choose(memory, parts, &below);",
                               "= (choose(memory, parts, &below) + 1) % parts;"),
    "pieces in another order": ("+= choose(memory, SIMDGROUPS, &below) *",
                                "+= (choose(memory, SIMDGROUPS, &below) ^ 1) *"),
    "the last of the largest": ("ulong(NO_KEY - uint(index))", "ulong(index)"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str) -> None:
    old, new = PLANTED[name]
    rng = np.random.default_rng(7)
    logits = np.round(rng.standard_normal((9, 2303)) * 4) / 4
    logits[1] = np.where(np.arange(2303) < 512, 0.0, -np.inf)  # a quarter ends with a piece
    logits[0, [5, 2301, 2302]] = 7.0
    logits[4, 2302] = 7.0
    logits[5] = np.where(np.arange(2303) < 2048, -20.0, logits[5])
    logits[6] = 0.0
    logits[7] = np.round(logits[7])  # in one bin more than a part's candidates
    rules = [[0, 0, 1, 0, 0], [*OFF, 0.25], [1, 30, 1, np.inf, 0.4], [1, 0, 0.8, np.inf, 0.7],
             [0, 0, 1, 0, 0], [1, 0, 0.5, np.inf, 0.9], [*OFF, 1 - 2.0**-24],
             [1, 0, 0.8, np.inf, 0.9], [1, 0, 1, 2.5, 0.9]]  # fmt: skip
    call = call_of(logits, rules, mx.float32)
    what = sample_plan(call)
    texts = {library: text.replace(old, new) for library, text in what.texts.items()}
    assert texts != what.texts, old
    try:
        actual = emulated(call, Order.SHUFFLED, what=dataclasses.replace(what, texts=texts))
    except Fault:
        return
    same = [np.array_equal(a, b) for a, b in zip(actual, expected(call), strict=True)]
    assert not all(same)


@pytest.mark.skipif(not has_clang(), reason="clang comes with ziglang")
@pytest.mark.parametrize("element", ELEMENTS.values())
def test_address_spaces(element: int) -> None:
    shape = {"element": element, "num_rows": 1, "vocabulary": 9, "rule_rows": 1}
    texts = plan("sample", *shape.items()).texts
    rows, parts = (texts[f"{name}_element{element}"] for name in ("sample", "sample_parts"))
    for text, old, new in (
        (rows, "THREADGROUP const ulong* sums", "THREAD const ulong* sums"),
        (rows, "(THREADGROUP ulong*)THREADGROUP_MEMORY", "(DEVICE ulong*)THREADGROUP_MEMORY"),
        (rows, "  DEVICE const LOGIT* logits;", "  THREAD const LOGIT* logits;"),
        (rows, "tokens[GROUP_X] = token", "rules[GROUP_X] = token"),
        (parts, "DEVICE ulong* own = extents", "THREADGROUP ulong* own = extents"),
        (parts, "own[0] = extent.best", "logits[0] = extent.best"),
    ):
        check_address_spaces(text)
        assert old in text
        with pytest.raises(Refused, match=r"line|kernel\.metal"):
            check_address_spaces(text.replace(old, new))


def test_nothing_is_launched_for_no_rows() -> None:
    shape = {"element": 0, "num_rows": 0, "vocabulary": 9, "rule_rows": 1}
    assert not plan("sample", *shape.items()).dispatches
