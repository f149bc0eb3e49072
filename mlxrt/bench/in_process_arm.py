"""Core and engine in one process, without a server: what the transport is measured against.

`python -m mlxrt.bench.in_process_arm MODEL SEQUENCES CONTEXT GROWTH BLAS DTYPE` fills the context,
prints "ready", then answers every line `STEPS` on its input with the seconds that this many decode
steps took, two in flight. MODEL "fake" is the fake model.
"""

from __future__ import annotations

import sys
import time

from mlxrt.bench.population import BLOCK_SIZE, ROWS_MAX, blocks_for, prompts_for
from mlxrt.config import load_settings
from mlxrt.core.model import Limits
from mlxrt.core.step import Item, NewSequence, TokenSource
from mlxrt.launch import make_engine
from mlxrt.telemetry import configure_logs
from mlxrt.testing.local_runner import LocalRunner


def _runner(model: str, num_blocks: int, length: int, blas: str, dtype: str) -> LocalRunner:
    fake = model == "fake"
    limits = {"max_step_rows": ROWS_MAX, "max_model_length": length}
    settings = load_settings(
        None, model="bundled" if fake else model, fake=fake, blas=blas, dtype=dtype,
        block_size=BLOCK_SIZE, num_blocks=num_blocks, limits=limits,
    )  # fmt: skip
    return LocalRunner(make_engine(settings), Limits(**limits))


def _fill(runner: LocalRunner, sequences: int, context: int, growth: int) -> None:
    blocks_each = blocks_for(context + growth)
    leased = runner.allocate(blocks_each * sequences)
    prompts = prompts_for(sequences, context, runner.facts.vocabulary_size)
    per_step = max(1, ROWS_MAX // context)
    for first in range(0, sequences, per_step):
        chosen = range(first, min(first + per_step, sequences))
        new = [
            NewSequence(i + 1, prompts[i], {0: leased[i * blocks_each : (i + 1) * blocks_each]})
            for i in chosen
        ]
        for start in range(0, context, ROWS_MAX):
            count = min(ROWS_MAX, context - start)
            is_last = start + count == context
            runner.run(
                new_sequences=[] if start else new,
                items=[
                    Item(i + 1, count, source=TokenSource.REGISTERED, sample=is_last)
                    for i in chosen
                ],
            )


def main() -> None:
    """See the module."""
    configure_logs(level="warning")  # to standard error: the answers alone are on standard output
    model, sequences, context, growth = sys.argv[1], *map(int, sys.argv[2:5])
    num_blocks = sequences * blocks_for(context + growth) + 1
    runner = _runner(model, num_blocks, context + growth, *sys.argv[5:7])
    _fill(runner, sequences, context, growth)
    ids = list(range(1, sequences + 1))
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for index in range(int(line)):
            runner.submit(decode_ids=ids)
            if index:
                runner.finish()
        runner.finish()
        print(time.perf_counter() - start, flush=True)
    runner.close()


if __name__ == "__main__":
    main()
