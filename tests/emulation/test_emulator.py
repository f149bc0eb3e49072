"""The emulator by a small kernel of its own: right in every order, and every planted bug found."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import CompileError, Fault, Launch, Machine, Mode, Order, Refused, translate

ROW_SUM = """
#include <metal_stdlib>
using namespace metal;

struct Params { int columns; float factor; };

// The sum of a row by all threads of a threadgroup: lanes, then simd-groups through shared memory.
template <class T>
float lane_sum(device const T* row, int columns, uint first, uint step) {
  float sum = 0.0f;
  for (int i = int(first); i < columns; i += int(step)) {
    sum += float(row[i]);
  }
  return simd_sum(sum);
}

[[kernel]] void row_sum(
    device const DTYPE* in [[buffer(0)]],
    device DTYPE* out [[buffer(1)]],
    constant Params& params [[buffer(2)]],
    threadgroup float* sums [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const int columns = params.columns;
  const float sum = lane_sum(in + long(group.x) * columns, columns, thread_index, 32 * simdgroups);
  if (lane == 0) {
    sums[simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index == 0) {
    float total = 0.0f;
    for (uint i = 0; i < simdgroups; ++i) {
      total += sums[i];
    }
    out[group.x] = DTYPE(total * params.factor);
  }
}
"""
PARAMS = np.dtype([("columns", np.int32), ("factor", np.float32)])
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def row_sum(text: str, order: Order, rows: int = 5, columns: int = 77, seed: int = 0) -> np.ndarray:
    """Runs the kernel on float32 rows of small whole numbers and returns the sums."""
    values = np.random.default_rng(seed).integers(-8, 8, (rows, columns)).astype(np.float32)
    machine = Machine(order, seed)
    params = np.array([(columns, 0.5)], PARAMS)
    buffers = [
        machine.buffer("in", values, Mode.READ_ONLY),
        machine.buffer("out", None, Mode.OUTPUT, like=values[:, 0]),
        machine.buffer("params", params, Mode.READ_ONLY),
    ]
    machine.launch(Launch(text, "row_sum", buffers, (rows, 1, 1), (128, 1, 1), 16))
    assert machine.unwritten(buffers[1]) == -1
    np.testing.assert_array_equal(machine.read(buffers[1]), values.sum(axis=1) / 2)
    return machine.read(buffers[1])


def text(dtype: str = "float") -> str:
    """Returns the MSL of the kernel for a type."""
    return ROW_SUM.replace("DTYPE", dtype)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("columns", [1, 77, 256])
def test_every_order_gives_the_sums(order: Order, columns: int) -> None:
    before = Machine().accesses
    row_sum(text(), order, columns=columns)
    assert Machine().accesses - before >= 5 * columns


@pytest.mark.parametrize(("dtype", "bits"), [("half", np.float16), ("bfloat", None)])
def test_two_byte_floats_round_as_they_should(dtype: str, bits: type | None) -> None:
    exact = np.array([[1.0, 2.0**-9], [1.0, 3 * 2.0**-9], [257.0, 0.0], [-0.1, 0.0]], np.float32)
    if bits is None:
        raw = exact.view(np.uint32)
        stored = ((raw.astype(np.uint64) + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = exact.astype(np.float16).view(np.uint16)
        values = exact.astype(np.float16).astype(np.float32)
    machine = Machine()
    buffers = [
        machine.buffer("in", stored, Mode.READ_ONLY),
        machine.buffer("out", None, Mode.OUTPUT, like=stored[:, 0]),
        machine.buffer("params", np.array([(2, 1.0)], PARAMS), Mode.READ_ONLY),
    ]
    machine.launch(Launch(text(dtype), "row_sum", buffers, (4, 1, 1), (32, 1, 1), 4))
    sums = values.sum(axis=1, dtype=np.float32)
    out = machine.read(buffers[1])
    if bits is None:
        raw = sums.view(np.uint32)
        expected = ((raw.astype(np.uint64) + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)
    else:
        expected = sums.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(out, expected)


PLANTED = {
    "a missing barrier": (BARRIER, "", "race|which nothing has written"),
    "a barrier that orders other memory": ("mem_threadgroup)", "mem_device)", "race|nothing has"),
    "a read out of range": ("i < columns;", "i <= columns;", "offset 1540 of in, which has 1540"),
    "a read before the buffer": ("in + long(", "in - 1 + long(", "offset -4 of in"),
    "a write out of range": ("out[group.x] =", "out[group.x + 1] =", "of out, which has 20"),
    "a write past the threadgroup's memory": ("sums[simdgroup] =", "sums[simdgroup + 1] =",
                                              "of threadgroup memory, which has 16"),
    "a wrong lane": ("if (lane == 0)", "if (lane <= 1)", "race: write .* threadgroup memory"),
    "a lane alone in an operation": ("return simd_sum(sum);",
                                     "return first % 32 ? simd_sum(sum) : sum;",
                                     "never reach|they must all be at one"),
    "a barrier that some never reach": (BARRIER, f"if (simdgroup > 0) {{ {BARRIER} }}",
                                        "never reach|nothing has written"),
    "two barriers at once": (BARRIER, f"if (lane == 3) {{\n{BARRIER}\n}} else {{\n{BARRIER}\n}}",
                             "they must all be at one"),
    "an output written by two threadgroups": ("out[group.x] =", "out[group.x / 2] =",
                                              "another threadgroup"),
    "memory that nothing has written": ("float total = 0.0f", "float total = out[group.x]",
                                        "nothing has written"),
    "a component that is not there": ("in + long(group.x)", "in + long(group[3])", "component"),
    "an integer overflow": ("const int columns = params.columns",
                            "const int columns = params.columns * 100000000", "overflow"),
    "a misaligned vector": ("sum += float(row[i])",
                            "sum += (*(device const float2*)(row + 1)).x", "not aligned at line"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("order", [Order.ASCENDING, Order.SHUFFLED])
def test_planted_bugs_are_found(name: str, order: Order) -> None:
    old, new, report = PLANTED[name]
    assert old in text()
    with pytest.raises(Fault, match=report) as caught:
        row_sum(text().replace(old, new), order)
    assert str(caught.value).startswith("row_sum: ")


def test_a_fault_names_the_line() -> None:
    planted = text().replace("i < columns;", "i <= columns;")
    line = planted.split("sum += float")[0].count("\n") + 1
    with pytest.raises(Fault, match=rf"thread \d+ of threadgroup \(4, 0, 0\)\] at line {line}$"):
        row_sum(planted, Order.ASCENDING)


@pytest.mark.parametrize(("told", "threads"), [("32 * 4", None), ("(32 * 2)", 64), ("96", 96)])
def test_no_more_threads_run_than_the_compiler_was_told(told: str, threads: int | None) -> None:
    attribute = f"[[kernel, max_total_threads_per_threadgroup({told})]]"
    limited = text().replace("[[kernel]]", attribute)
    if threads is None:
        row_sum(limited, Order.ASCENDING)
        return
    with pytest.raises(Fault, match=f"compiled for {threads} threads, 128 launched"):
        row_sum(limited, Order.ASCENDING)


UNKNOWN = {
    "a number of threads that is none": (
        "[[kernel]]", "[[kernel, max_total_threads_per_threadgroup(sizeof(int))]]"),
    "another word beside kernel": ("[[kernel]]", "[[kernel, early_fragment_tests]]"),
    "double sum": ("float sum = 0.0f;", "double sum = 0.0;"),
    "static": ("float sum = 0.0f;", "static float sum = 0.0f;"),
    "a lambda": ("float sum = 0.0f;", "auto f = [](float a) { return a; }; float sum = f(0.0f);"),
    "another header": ("#include <metal_stdlib>", "#include <metal_stdlib>\n#include <vector>"),
    "a header of metal that is not emulated": ("<metal_stdlib>", "<metal_tensor>"),
    "an attribute": ("[[thread_index_in_threadgroup]]", "[[dispatch_quadgroups_per_threadgroup]]"),
    "a compiler's own word": ("float sum = 0.0f;", "float sum = __builtin_inff();"),
    "a variable in threadgroup memory": ("float sum = 0.0f;",
                                         "threadgroup float t[4]; float sum = 0.0f;"),
    "long long": ("const int columns", "const long long columns"),
    "text that is not ASCII": ("The sum", "The sum \u2211"),
    "a texture": ("device const float* in [[buffer(0)]]",
                  "texture2d<float> in [[texture(0)]]"),
    "no kernel": ("[[kernel]] void", "void"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused(name: str) -> None:
    old, new = UNKNOWN[name]
    assert old in text()
    with pytest.raises(Refused):
        translate(text().replace(old, new))


@pytest.mark.parametrize(
    "call", ["quad_sum(sum)", "simd_is_first()", "fast::divide(sum, 2.0f)", "half(sum) = 1.0f"]
)
def test_a_function_that_is_not_known_does_not_compile(call: str) -> None:
    planted = text().replace("return simd_sum(sum);", f"{call};\nreturn simd_sum(sum);")
    with pytest.raises(CompileError, match=r"kernel\.metal"):
        row_sum(planted, Order.ASCENDING)
