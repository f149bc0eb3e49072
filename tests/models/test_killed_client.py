"""A scheduler killed in mid-step: its blocks come back, and another session's tokens are as without
it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

from mlxrt_client import Client, Session, messages
from mlxrt_client.errors import OutOfBlocksError
from mlxrt_client.v1 import StepRequest

from mlxrt.testing.server_process import ServerProcess

LEASE_MS = 2000
VICTIM_BLOCKS = 40
SURVIVOR_BLOCKS = 24
STEPS = 120

VICTIM = """
import sys
from mlxrt_client import Client, Scheduler

client = Client(sys.argv[1])
session = client.open_session(lease_ttl_ms=int(sys.argv[2]))
limits = client.server_info().limits
scheduler = Scheduler(session, client.model_info(), limits, block_count=int(sys.argv[3]))
for index in range(6):
    scheduler.add([50 + index] * 8, 90)
for _ in scheduler.run():
    print("token", flush=True)
"""


def _survive(session: Session, on_step: Callable[[int], None]) -> list[int]:
    """Prefills four prompts and decodes them together; calls `on_step` with the number of each
    step."""
    tables = session.allocate_blocks({0: SURVIVOR_BLOCKS + 8})[0]
    step = StepRequest()
    each = len(tables) // 4
    for index in range(4):
        table = tables[index * each : (index + 1) * each]
        prompt = [300 + index, 17, 44]
        step.new_sequences.append(messages.new_sequence(index, prompt, {0: table}))
        step.items.append(messages.chunk_item(index, len(prompt), sample=True))
    tokens = [result.token_ids[0] for result in session.step(step).results]
    for number in range(STEPS):
        on_step(number)
        tokens += session.step(StepRequest(decode_sequence_ids=range(4))).token_ids
    session.free_sequences(list(range(4)), and_blocks=True)
    return tokens


def test_blocks_return_and_the_other_session_is_unharmed() -> None:
    pool = VICTIM_BLOCKS + SURVIVOR_BLOCKS + 8
    arguments = ["--model", "bundled", "--num-blocks", str(pool + 1), "--poison-pool"]
    with ServerProcess(arguments) as server, Client(server.address) as client:
        with client.open_session() as session:
            undisturbed = _survive(session, lambda number: None)
        victim = subprocess.Popen(
            [sys.executable, "-P", "-c", VICTIM, server.address, str(LEASE_MS), str(VICTIM_BLOCKS)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert victim.stdout is not None
        for _ in range(12):
            assert victim.stdout.readline() == "token\n"
        killed_at: list[float] = []

        def kill(number: int) -> None:
            if number == 20:
                assert victim.poll() is None
                victim.send_signal(signal.SIGKILL)
                killed_at.append(time.monotonic())

        with client.open_session() as session:
            assert _survive(session, kill) == undisturbed
            assert victim.wait() == -signal.SIGKILL
            while True:
                try:
                    session.allocate_blocks({0: pool})
                    break
                except OutOfBlocksError:
                    assert time.monotonic() - killed_at[0] < LEASE_MS / 1000 + 60
                    time.sleep(0.05)
        assert server.stop(signal.SIGTERM) == 0
