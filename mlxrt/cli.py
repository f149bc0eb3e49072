"""The command line: parsing and printing only. `mlxrt serve | demo | check | models |
bench | deploy`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlxrt.cli_options import (
    AcceptSemantics,
    Attention,
    Blas,
    ConfigFile,
    Dtype,
    Model,
    SetOption,
    settings_of,
)
from mlxrt.config import ConfigError
from mlxrt.deploy.command import deploy
from mlxrt.exit_code import ExitCode
from mlxrt.versions import installed_versions

REPORT_COLUMNS = 140
"""Width of a report that goes to a file or a pipe."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bench = typer.Typer(
    no_args_is_help=True, help="Measures this machine; tables, or JSON with --json."
)
app.add_typer(bench, name="bench")
app.add_typer(deploy, name="deploy")

JsonPath = Annotated[
    Path | None,
    typer.Option("--json", help='Where to write the report as JSON; "-" for standard output.'),
]


def main() -> None:
    """Entry point of `mlxrt`."""
    try:
        app()
    except ConfigError as error:
        Console(stderr=True).print(f"mlxrt: {error}", style="red", markup=False, highlight=False)
        sys.exit(ExitCode.CONFIG)


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = installed_versions().items()
        typer.echo("\n".join(f"{name} {version}" for name, version in versions))
        raise typer.Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Versions.")
    ] = False,
) -> None:
    """Execution of language models on MLX as a service that somebody else schedules."""


@app.command()
def serve(
    model: Model = None,
    fake: Annotated[
        bool, typer.Option("--fake", help="Serve the fake model; needs no MLX.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="unix:PATH, or HOST:PORT on loopback.")
    ] = None,
    attention: Attention = None,
    dtype: Dtype = None,
    blas: Blas = None,
    block_size: Annotated[int | None, typer.Option(help="Positions in a block, 1 to 256.")] = None,
    num_blocks: Annotated[
        int | None, typer.Option(help="Blocks of the pool; default: as memory allows.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: ConfigFile = None,
    accept: AcceptSemantics = False,
    set_: SetOption = None,
    poison_pool: Annotated[bool, typer.Option("--poison-pool", hidden=True)] = False,
) -> None:
    """Serves a model until SIGTERM.

    Exit codes: 0 drained, 2 configuration, 3 model, 4 ABI, 5 memory, 6 device lost.
    """
    from mlxrt.launch import make_engine
    from mlxrt.loading_bar import LoadingBar
    from mlxrt.server.app import run_server
    from mlxrt.telemetry.logs import configure_logs

    settings = settings_of(
        config, set_, model=model, fake=fake or None, address=address,
        attention=attention, dtype=dtype, blas=blas, block_size=block_size, num_blocks=num_blocks,
        log_level=log_level, accept_mlx_lm_semantics=accept or None,
    )  # fmt: skip
    configure_logs(settings.log_format, settings.log_level)
    engine = make_engine(settings, poison_pool=poison_pool)
    with LoadingBar() as bar:
        raise typer.Exit(run_server(settings, engine, progress=bar.update))


@app.command()
def demo(
    tokens: Annotated[int, typer.Option(min=1, max=512, help="New tokens for each prompt.")] = 96,
) -> None:
    """Completes a dozen prompts with the bundled model: a server process, and a scheduler here."""
    from mlxrt.demo.run import run_demo

    if not run_demo(tokens, Console()):
        raise typer.Exit(1)


@app.command()
def check(
    model: Model = None,
    attention: Attention = None,
    dtype: Dtype = None,
    blas: Blas = None,
    config: ConfigFile = None,
    accept: AcceptSemantics = False,
    set_: SetOption = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Check the native operations on the default device instead, and their speed.",
        ),
    ] = False,
    cases: Annotated[int, typer.Option(min=1, help="With --kernels: calls of each kind.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="With --kernels: of the calls.")] = 0,
    speed: Annotated[bool, typer.Option(help="With --kernels: measure too.")] = True,
) -> None:
    """Checks environment, ABI and memory plan, and a checkpoint's numbers against mlx-lm alone."""
    if kernels:
        from mlxrt.check.kernels import run_kernel_check

        console = Console()
        if not console.is_terminal:
            console.width = REPORT_COLUMNS
        raise typer.Exit(run_kernel_check(console, cases, seed, speed))
    from mlxrt.check.run import run_check

    settings = settings_of(
        config, set_, model=model, attention=attention, dtype=dtype, blas=blas,
        accept_mlx_lm_semantics=accept or None,
    )  # fmt: skip
    raise typer.Exit(run_check(settings, Console()))


@app.command("models")
def list_models(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As README.md has it.")] = False,
) -> None:
    """Lists the families that are served; needs no MLX."""
    from rich.table import Table

    from mlxrt.models import table

    if as_markdown:
        typer.echo(table.markdown())
        return
    printed = Table(*table.COLUMNS, box=None)
    for row in table.rows():
        printed.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = REPORT_COLUMNS
    console.print(printed)


@bench.command("step")
def bench_step(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="fake, bundled, qwen3-30m, qwen3-600m or a folder. Repeatable."
        ),
    ] = None,
    sequences: Annotated[
        list[int] | None, typer.Option(min=1, help="Repeatable. Default: 1, 8, 64.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Times each arm is timed.")] = 5,
    rounds: Annotated[
        int, typer.Option(min=1, help="Times that server and arms are started anew.")
    ] = 1,
    steps: Annotated[int, typer.Option(min=2, help="Decode steps in one timing.")] = 48,
    contexts: Annotated[
        list[int] | None,
        typer.Option(
            "--context", min=1,
            help="Positions filled before the clock starts. Repeatable. Default: 256.",
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm", help="stream, unary, in_process, mlx_lm, dense, sampled. Repeatable. "
            "Default: the first four. dense: mlx-lm's model in a bare loop; sampled: the stream "
            "of sequences with temperature and top-p.",
        ),
    ] = None,
    prefills: Annotated[
        list[str] | None,
        typer.Option("--prefill", help="SEQUENCESxCONTEXT to time the prefill of. Repeatable."),
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="One arm at a time, for what memory holds but once.")
    ] = False,
    in_flight: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Steps that the streams keep in flight; in process it is two."
        ),
    ] = 2,
    num_blocks: Annotated[
        int, typer.Option(min=1, help="Blocks of the pool, at least; more where arms need more.")
    ] = 1,
    dtype: Dtype = None,
    blas: Blas = None,
    json_path: JsonPath = None,
) -> None:  # fmt: skip
    """Decode steps over gRPC, without it, and by mlx-lm alone."""
    from mlxrt.bench import step, tables

    plan = step.Plan(
        contexts=tuple(contexts or [256]), repeats=repeats, rounds=rounds, steps=steps,
        blas=blas or "auto", dtype=dtype or "auto", arms=tuple(arms or step.ARMS[:4]),
        is_apart=apart, in_flight=in_flight, num_blocks=num_blocks,
        prefills=tuple(step.prefill_of(text) for text in prefills or ()),
    )  # fmt: skip
    console = Console(stderr=True)
    report = step.bench_step(
        models or ["fake", "bundled", "qwen3-30m"], sequences or [1, 8, 64], plan,
        lambda name, cell: console.print(f"{name}: {cell}", highlight=False, soft_wrap=True),
    )  # fmt: skip
    _write_report(report, json_path, tables.step_table(report))
    if prefills and json_path is None:
        Console(width=120).print(tables.prefill_table(report))


@bench.command("attention")
def bench_attention(
    contexts: Annotated[
        list[int] | None, typer.Option("--context", min=1, help="Repeatable.")
    ] = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeatable.")] = None,
    block_sizes: Annotated[list[int] | None, typer.Option("--block-size", min=1, max=256)] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float32, float16, bfloat16.")
    ] = None,
    layouts: Annotated[
        list[str] | None, typer.Option("--layout", help="token_major, head_major.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The whole grid, where nothing else is chosen.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each figure of a cell.")] = 0.3,
    sweeps: Annotated[int, typer.Option(min=1, help="Sweeps over the grid.")] = 2,
    memory_gb: Annotated[
        float, typer.Option(min=0.1, help="Cells that need more are left out.")
    ] = 8.0,
    json_path: JsonPath = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print each cell as a CSV: line.")] = False,
    plots: Annotated[Path | None, typer.Option(help="A folder for PNGs.")] = None,
) -> None:
    """Paged decode attention beside gather + SDPA and contiguous SDPA, on the default device."""
    from mlxrt.bench import attention, attention_plots, tables
    from mlxrt.bench.attention_arms import LAYOUTS

    if plots is not None:
        try:
            attention_plots.require_plots()
        except ImportError as error:
            raise ConfigError(f"--plots: {error}") from error
    every = attention.FULL_GRID if full else ((1024, 4096, 16384), (1, 4), (16,))
    grid = attention.Grid(
        tuple(contexts or every[0]), tuple(batches or every[1]), tuple(block_sizes or every[2]),
        _chosen("--dtype", dtypes, ("bfloat16", "float32"), ("float32", "float16", "bfloat16")),
        _chosen("--layout", layouts, LAYOUTS, LAYOUTS),
        seconds, sweeps, int(memory_gb * 1e9),
    )  # fmt: skip
    console = Console(stderr=True)
    report = attention.bench_attention(
        grid, lambda cell: console.print(str(cell), highlight=False, soft_wrap=True)
    )
    if csv:
        cells: Any = report["cells"]
        typer.echo("\n".join(attention.csv_lines(cells)))
    if plots is not None:
        for path in attention_plots.write_plots(report, plots):
            console.print(str(path), highlight=False, soft_wrap=True)
    _write_report(report, json_path, tables.attention_table(report))


def _chosen(
    option: str, given: list[str] | None, default: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    for name in given or ():
        if name not in known:
            raise ConfigError(f"{option} {name}: one of {', '.join(known)}")
    return tuple(given or default)


@bench.command("hostile")
def bench_hostile(
    model: Annotated[
        str, typer.Option(help="fake (steps of 5 ms), bundled or a folder.")
    ] = "fake",
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Repeatable. Default: all.")
    ] = None,
    spells: Annotated[int, typer.Option(min=1, help="Quiet and hostile spells of a kind.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of one spell.")] = 2.0,
    max_message_bytes: Annotated[
        int, typer.Option(min=1 << 16, help="The server's limit; hostile messages are as large.")
    ] = 4 << 20,
    json_path: JsonPath = None,
) -> None:
    """One client's step latency while another floods, stalls or reconnects."""
    from mlxrt.bench import hostile, tables

    unknown = set(kinds or ()) - set(hostile.KINDS)
    if unknown:
        raise ConfigError(f"--kind {sorted(unknown)[0]}: one of {', '.join(hostile.KINDS)}")
    console = Console(stderr=True)
    report = hostile.bench_hostile(
        kinds or hostile.KINDS, hostile.Plan(model, spells, seconds, max_message_bytes),
        lambda cell: console.print(str(cell), highlight=False, soft_wrap=True),
    )  # fmt: skip
    _write_report(report, json_path, tables.hostile_table(report))


def _write_report(report: dict[str, Any], path: Path | None, table: Any) -> None:
    text = json.dumps(report, indent=1)
    if path is not None and str(path) == "-":
        typer.echo(text)
        return
    if path is not None:
        path.write_text(text + "\n")
    console = Console()
    if not console.is_terminal:
        console.width = REPORT_COLUMNS
    console.print(table)
