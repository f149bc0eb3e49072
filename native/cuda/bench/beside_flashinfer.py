"""Our decode attention beside FlashInfer's, in one session on one GPU; see README.md.

The arms take turns: per round our program with all cells, then FlashInfer without and with its
tensor cores. Both are CUDA graphs, replayed; planning is excluded, merging included.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
from dataclasses import dataclass

import flashinfer
import torch

BATCHES = (1, 8, 32, 64)
CONTEXTS = (1024, 4096, 16384)
BLOCK_SIZE = 16
HEAD_DIM = 128
ROTATED_BYTES = 220_000_000
"""More than any second-level cache: what a call reads was not read by the call before."""
WORKSPACE_BYTES = 512 << 20
REPLAYS = 7
ARMS = ("ours", "FlashInfer", "with tensor cores")

Cell = tuple[int, int]
"""Batch and context."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of query and KV heads."""

    query: int
    kv: int


def ours_us(program: str, heads: Heads) -> dict[Cell, float]:
    """Runs our program and returns its medians, in µs a call.

    Raises:
        CalledProcessError: it failed, or its outputs differ from its reference.
    """
    command = [program, str(heads.query), str(heads.kv)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = csv.DictReader(result.stdout.splitlines())
    return {(int(row["batch"]), int(row["context"])): float(row["us"]) for row in rows}


def flashinfer_us(cell: Cell, heads: Heads, use_tensor_cores: bool) -> float:
    """Returns the median of FlashInfer's batch decode over a paged cache, in µs a call."""
    batch, context = cell
    blocks = batch * context // BLOCK_SIZE
    shape = (blocks, BLOCK_SIZE, heads.kv, HEAD_DIM)
    set_bytes = 4 * blocks * BLOCK_SIZE * heads.kv * HEAD_DIM
    sets = -(-ROTATED_BYTES // set_bytes)
    caches = [
        tuple(torch.rand(shape, device="cuda", dtype=torch.bfloat16) * 2 - 1 for _ in range(2))
        for _ in range(sets)
    ]
    queries = torch.rand((batch, heads.query, HEAD_DIM), device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(queries)
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * (context // BLOCK_SIZE)
    indices = torch.randperm(blocks, device="cuda").to(torch.int32)
    last = torch.full((batch,), BLOCK_SIZE, dtype=torch.int32, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"), "NHD",
        use_cuda_graph=True, use_tensor_cores=use_tensor_cores,
        paged_kv_indptr_buffer=torch.empty_like(starts),
        paged_kv_indices_buffer=torch.empty_like(indices),
        paged_kv_last_page_len_buffer=torch.empty_like(last),
    )  # fmt: skip
    wrapper.plan(
        starts, indices, last, heads.query, heads.kv, HEAD_DIM, BLOCK_SIZE,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    calls = sets * max(1, -(-20 // sets))
    return _replayed_us(lambda: _run_all(wrapper, queries, caches, out, calls)) / calls


def _run_all(wrapper, queries, caches, out, calls) -> None:  # type: ignore[no-untyped-def]
    for call in range(calls):
        wrapper.run(queries, caches[call % len(caches)], out=out)


def _replayed_us(run) -> float:  # type: ignore[no-untyped-def]
    """Captures a graph and returns the median of its replays, in µs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # compiles, where it must
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1000)
    return statistics.median(times[2:])


def main() -> None:
    """Measures and prints a table for native/README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="decode_attention, built by bench_decode_attention")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--heads", type=int, nargs=2, default=(16, 8), metavar=("QUERY", "KV"))
    options = parser.parse_args()
    heads = Heads(*options.heads)
    cells = [(batch, context) for batch in BATCHES for context in CONTEXTS]
    taken: dict[Cell, dict[str, list[float]]] = {c: {arm: [] for arm in ARMS} for c in cells}
    for _ in range(options.rounds):
        ours = ours_us(options.program, heads)
        for cell in cells:
            taken[cell][ARMS[0]].append(ours[cell])
            for arm, use_tensor_cores in ((ARMS[1], False), (ARMS[2], True)):
                taken[cell][arm].append(flashinfer_us(cell, heads, use_tensor_cores))
                torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    print(f"{device}, FlashInfer {flashinfer.__version__}, torch {torch.__version__}")
    print("| batch x context |", " | ".join(ARMS), "| ours / the better | rounds |")
    print("|---" * (len(ARMS) + 3) + "|")
    for (batch, context), times in taken.items():
        medians = [statistics.median(times[arm]) for arm in ARMS]
        spread = max(max(t) / min(t) - 1 for t in times.values())
        figures = " | ".join(f"{us:.1f}" for us in medians)
        ratio = medians[0] / min(medians[1:])
        print(f"| {batch} x {context} | {figures} | {ratio:.2f} | differ by {spread:.0%} |")


if __name__ == "__main__":
    main()
