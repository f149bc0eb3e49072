"""The reports of the benchmarks as tables for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def step_table(report: dict[str, Any]) -> Table:
    """One row per model, context and number of sequences; tokens/s, ratios, milliseconds beside the
    model."""
    table = Table(
        "model", "sequences", "context", "stream", "unary", "in process", "mlx-lm", "dense",
        "sampled", "stream / in process", "stream / mlx-lm", "stream / dense", "sampled / stream",
        "overhead p50", "p99",
        title=f"decode, tokens/s on {report['device']}",
    )  # fmt: skip
    for model in report["models"]:
        for cell in model["cells"]:
            stream, unary, local, alone, dense, sampled = (
                cell[f"{arm}_tokens_per_s"]
                for arm in (
                    "grpc_stream", "grpc_unary", "in_process", "mlx_lm", "dense", "sampled_stream",
                )
            )  # fmt: skip
            table.add_row(
                model["name"], str(cell["sequences"]), str(cell["context"]),
                *(_rate(each) for each in (stream, unary, local, alone, dense, sampled)),
                _ratio(stream, local), _ratio(stream, alone), _ratio(stream, dense),
                _ratio(sampled, stream),
                *("" if ms is None else f"{ms:.3f} ms"
                  for ms in (cell["overhead_ms_p50"], cell["overhead_ms_p99"])),
            )  # fmt: skip
    return table


def prefill_table(report: dict[str, Any]) -> Table:
    """One row per model and prefill; prompt tokens/s."""
    table = Table(
        "model", "sequences", "context", "mlxrt", "mlx-lm", "ratio",
        title=f"prefill, prompt tokens/s on {report['device']}",
    )  # fmt: skip
    for model in report["models"]:
        for cell in model["prefills"]:
            ours, alone = cell["grpc_prompt_tokens_per_s"], cell["mlx_lm_prompt_tokens_per_s"]
            table.add_row(
                model["name"], str(cell["sequences"]), str(cell["context"]), _rate(ours),
                _rate(alone), _ratio(ours, alone),
            )  # fmt: skip
    return table


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "" if not one or not other else f"{one / other:.2f}"


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
