"""Runs the demonstration: this process schedules, a server process executes."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from mlxrt_client import Client, Scheduler
from mlxrt_client.v1 import SamplingParams
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from mlxrt.demo.prompts import PROMPTS
from mlxrt.testing.server_process import ServerProcess

BLOCK_COUNT = 48
"""Blocks that the demonstration leases: too few for a dozen sequences at once, so that it has to
preempt."""
STEP_ROWS_MAX = 32
"""Row budget of a step: small enough that a prompt is prefilled beside others' decodes."""


@dataclass(slots=True)
class _Completion:
    prompt: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None

    def render(self) -> Text:
        """The prompt in bold, what followed it, and how it ended."""
        text = Text(self.prompt, style="bold")
        text.append(self.text, style="green")
        text.append("" if self.finish is None else f"  [{self.finish}]", style="dim")
        return text


def run_demo(tokens_max: int, console: Console) -> bool:
    """Completes the prompts, streaming to `console`, then prints what it took.

    Args:
        tokens_max: new tokens for each prompt.

    Returns:
        Whether every sequence ended well and every block came back.
    """
    with (
        ServerProcess(["--model", "bundled", "--num-blocks", str(BLOCK_COUNT + 1)]) as server,
        Client(server.address) as client,
        client.open_session(client_name="mlxrt demo") as session,
    ):
        info = client.server_info()
        console.print(f"server: {info.device}, attention {info.attention_path}", highlight=False)
        tokenizer = Tokenizer.from_str(client.tokenizer_files()["tokenizer.json"].decode())
        model = client.model_info()
        scheduler = Scheduler(session, model, info.limits, step_rows_max=STEP_ROWS_MAX)
        stop_ids = list(model.end_token_ids)
        completions = {
            scheduler.add(
                tokenizer.encode(prompt).ids, tokens_max, stop_token_ids=stop_ids,
                sampling=SamplingParams(temperature=0.5, top_p=0.9, seed=seed),
            ): _Completion(prompt)
            for seed, prompt in enumerate(PROMPTS)
        }  # fmt: skip
        started_s = time.perf_counter()
        _stream(scheduler, tokenizer, completions, console)
        wall_s = time.perf_counter() - started_s
        scheduler.close()
        held = sum(len(table.block_ids) for table in session.state().leased_blocks)
        console.print(_table(scheduler, wall_s, model.groups[0].block_count - 1, held))
    return held == 0 and all(c.finish in ("stop", "length") for c in completions.values())


def _stream(
    scheduler: Scheduler,
    tokenizer: Tokenizer,
    completions: dict[int, _Completion],
    console: Console,
) -> None:
    """Runs the scheduler to its end; on a terminal the completions grow, elsewhere each is printed
    once it has ended."""
    live = Live(console=console, refresh_per_second=10, vertical_overflow="crop")
    with live if console.is_terminal else nullcontext():
        for token in scheduler.run():
            completion = completions[token.sequence_id]
            if token.token_id is not None:
                completion.token_ids.append(token.token_id)
                completion.text = tokenizer.decode(completion.token_ids)
            completion.finish = token.finish
            if console.is_terminal:
                live.update(_unfinished(completions))
            if token.finish is not None:
                console.print(completion.render())
                console.rule(style="dim")


def _unfinished(completions: dict[int, _Completion]) -> Group:
    """The last line of every completion that still grows."""
    lines = []
    for completion in completions.values():
        if completion.finish is None and completion.text:
            line = (completion.prompt + completion.text).splitlines()[-1]
            lines.append(Text(line, style="green", no_wrap=True))
    return Group(*lines)


def _table(scheduler: Scheduler, wall_s: float, block_count: int, held: int) -> Table:
    """What the run took."""
    s = scheduler.statistics
    beside_s = wall_s - s.device_us / 1e6
    table = Table("what", "figure", show_header=False)
    for name, figure in (
        ("steps", f"{s.step_count}"),
        ("  of them mixed (prefill beside decode)", f"{s.mixed_step_count}"),
        ("  in flight at once", f"{s.inflight_steps_max}"),
        ("rows", f"{s.row_count}"),
        ("tokens", f"{s.token_count}"),
        ("tokens/s", f"{s.token_count / wall_s:.0f}"),
        ("preemptions", f"{s.preemption_count}"),
        ("blocks used at most", f"{s.blocks_used_max[0]} of {block_count}"),
        ("blocks returned", "all" if held == 0 else f"all but {held}"),
        ("time in all", f"{wall_s:.2f} s"),
        ("time beside the model", f"{beside_s:.2f} s ({100 * beside_s / wall_s:.0f} %)"),
    ):
        table.add_row(name, figure)
    return table
