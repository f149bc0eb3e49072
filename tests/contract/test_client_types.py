"""What a type checker says to users of the client: right use passes, wrong use is found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """\
import asyncio
from concurrent.futures import Future
from mlxrt_client import Client, Scheduler, Token, aio, v1

def right(client: Client) -> list[Token]:
    with client.open_session(lease_ttl_ms=10_000) as session:
        blocks: dict[int, list[int]] = session.allocate_blocks({0: 1})
        session.free_blocks(blocks)
        future: Future[v1.StepResponse] = session.stream().submit(v1.StepRequest())
        future.result()
        return list(Scheduler(session, client.model_info(), client.server_info().limits).run())

async def right_too(client: aio.Client) -> None:
    async with await client.open_session() as session:
        future = await (await session.stream()).submit(v1.StepRequest())
        await asyncio.wait_for(future, 1)

def wrong(client: Client) -> None:
    with client.open_session(lease_ttl_ms="10") as session:  # wrong
        session.allocate_blocks([1])  # wrong
        session.step(3)  # wrong
        session.stream().submit(None)  # wrong
        Scheduler(client, client.model_info(), client.server_info().limits)  # wrong

async def wrong_too(client: aio.Client) -> None:
    async with client.open_session() as session:  # wrong
        pass
"""


def test_mypy_finds_each_misuse_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    configuration = repository / "clients" / "python" / "pyproject.toml"
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(configuration), str(program)],
        cwd=repository / "clients" / "python",
        capture_output=True,
        text=True,
    )
    found = {int(n) for n in re.findall(r"program\.py:(\d+): error", result.stdout)}
    lines = enumerate(PROGRAM.splitlines(), 1)
    assert found == {number for number, line in lines if line.endswith("# wrong")}, result.stdout
