"""The reports of the benchmarks as tables for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def step_table(report: dict[str, Any]) -> Table:
    """One row per model and number of sequences; tokens/s, ratios, milliseconds beside the
    model."""
    table = Table(
        "model", "sequences", "stream", "unary", "in process", "mlx-lm", "stream / in process",
        "stream / mlx-lm", "overhead p50", "p99",
        title=f"decode, tokens/s on {report['device']}",
    )  # fmt: skip
    for model in report["models"]:
        for cell in model["cells"]:
            stream, alone = cell["grpc_stream_tokens_per_s"], cell["mlx_lm_tokens_per_s"]
            table.add_row(
                model["name"], str(cell["sequences"]), f"{stream:.0f}",
                f"{cell['grpc_unary_tokens_per_s']:.0f}", f"{cell['in_process_tokens_per_s']:.0f}",
                "" if alone is None else f"{alone:.0f}",
                f"{stream / cell['in_process_tokens_per_s']:.2f}",
                "" if alone is None else f"{stream / alone:.2f}",
                f"{cell['overhead_ms_p50']:.3f} ms", f"{cell['overhead_ms_p99']:.3f} ms",
            )  # fmt: skip
    return table


def attention_table(report: dict[str, Any]) -> Table:
    """One row per cell; microseconds, and how the paged op stands to gather + SDPA and to the read
    bandwidth."""
    bandwidth = report["read_gb_per_s"]
    table = Table(
        "dtype", "layout", "context", "batch", "block", "paged", "gather", "gather only", "append",
        "contiguous", "gather / paged", "of bandwidth", "fragmentation",
        title=f"decode attention, µs on {report['device']}; reads {bandwidth} GB/s",
    )  # fmt: skip
    for cell in report["cells"]:
        paged = cell["paged_us"]
        table.add_row(
            cell["dtype"], cell["layout"], str(cell["context"]), str(cell["batch"]),
            str(cell["block_size"]), "" if paged is None else f"{paged:.0f}",
            f"{cell['gather_us']:.0f}", f"{cell['gather_only_us']:.0f}",
            f"{cell['append_us']:.0f}", f"{cell['contiguous_us']:.0f}",
            "" if paged is None else f"{cell['gather_us'] / paged:.1f}",
            "" if paged is None else f"{100 * cell['paged_gb_per_s'] / bandwidth:.0f} %",
            "" if paged is None else f"{cell['fragmentation']:.2f}",
        )  # fmt: skip
    if report["left_out"]:
        table.caption = f"left out for want of memory: {len(report['left_out'])} cells"
    return table


def hostile_table(report: dict[str, Any]) -> Table:
    """One row per kind; milliseconds of the good client's steps."""
    table = Table(
        "beside", "p50 quiet", "p50 hostile", "p99 quiet", "p99 hostile", "p99 ratio", "steps",
        "server's peak",
        title=f"steps of {report['sequences']} sequences, ms, model {report['model']}",
    )  # fmt: skip
    for cell in report["cells"]:
        table.add_row(
            cell["kind"], f"{cell['quiet_ms_p50']:.1f}", f"{cell['hostile_ms_p50']:.1f}",
            f"{cell['quiet_ms_p99']:.1f}", f"{cell['hostile_ms_p99']:.1f}", f"{cell['ratio']:.2f}",
            str(cell["steps"]), f"{cell['server_peak_mib']:.0f} MiB",
        )  # fmt: skip
    return table
