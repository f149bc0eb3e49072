"""The clients' drafts, masks and deferred sampling against the fake server, sync and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlxrt_client import Client, aio, messages, v1
from mlxrt_client.errors import InvalidRequestError, StepNumberError

from mlxrt.testing import FakeEngine
from mlxrt.testing.server_thread import ServerThread

PROMPT = [5, 9, 2, 77]
VOCABULARY = 4096


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(FakeEngine(num_blocks=64, block_size=4)) as running:
        yield running


def prefill(blocks: dict[int, list[int]]) -> v1.StepRequest:
    return v1.StepRequest(
        new_sequences=[messages.new_sequence(1, PROMPT, blocks)],
        items=[messages.chunk_item(1, len(PROMPT), sample=True)],
    )


def only(*token_ids: int) -> v1.TokenMask:
    """The mask of sequence 1 that allows one token in each row."""
    rows = [messages.packed_tokens(VOCABULARY, [token_id]) for token_id in token_ids]
    return messages.token_mask(1, VOCABULARY, rows)


DEFERRED = v1.StepRequest(decode_sequence_ids=[1], defer_sampling=True)


def test_packed_masks() -> None:
    row = messages.packed_tokens(70, [0, 33, 69])
    assert row == bytes([1, 0, 0, 0, 2, 0, 0, 0, 32, 0, 0, 0])
    mask = messages.token_mask(3, 70, [row, row])
    assert (mask.sequence_id, list(mask.allowed.shape)) == (3, [2, 3])
    with pytest.raises(ValueError, match="token 70 is not below 70"):
        messages.packed_tokens(70, [70])
    with pytest.raises(ValueError, match="12 bytes"):
        messages.token_mask(3, 70, [row[:-1]])


def test_drafts_and_masks_in_a_step(server: ServerThread) -> None:
    with Client(server.address) as client, client.open_session() as session:
        session.step(prefill(session.allocate_blocks({0: 4})))
        item = messages.decode_item(1, draft_token_ids=[7, 8])
        reply = session.step(v1.StepRequest(items=[item], masks=[only(7, 8, 9)]))
        assert list(reply.results[0].token_ids) == [7, 8, 9]
        assert reply.results[0].accepted_draft_count == 2


def test_masks_over_a_stream_that_breaks(server: ServerThread) -> None:
    with Client(server.address) as client, client.open_session() as session:
        session.step(prefill(session.allocate_blocks({0: 4})))
        with session.stream() as stream:
            step = stream.submit(DEFERRED)
            behind = stream.submit(v1.StepRequest(decode_sequence_ids=[1]))
            wait_for_inflight(session, 2)
            assert not step.done()
            stream._call.cancel()
            sampled = stream.sample(step, [only(7)])
            assert list(step.result(60).token_ids) == [7]
            assert sampled.result(60) is None
            assert len(behind.result(60).token_ids) == 1
            assert stream.connection_count == 2
            with pytest.raises(ValueError, match="no such step"):
                stream.sample(step, [])


def test_refused_masks_leave_the_step_for_others(server: ServerThread) -> None:
    with Client(server.address) as client, client.open_session() as session:
        session.step(prefill(session.allocate_blocks({0: 4})))
        with session.stream() as stream:
            step = stream.submit(DEFERRED)
            with pytest.raises(InvalidRequestError) as refused:
                stream.sample(step, [only(7, 8)]).result(60)
            (problem,) = refused.value.problems
            assert problem.field == "sampling.masks[0].allowed.shape[0]"
            assert not step.done()
            stream.sample(step, [only(9)])
            assert list(step.result(60).token_ids) == [9]


def test_masks_by_a_call(server: ServerThread) -> None:
    with Client(server.address) as client, client.open_session() as session:
        session.step(prefill(session.allocate_blocks({0: 4})))
        number = session.next_step_number
        with pytest.raises(StepNumberError):
            session.sample(number, [])
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(session.step, DEFERRED)
            wait_for_inflight(session, 1)
            answer = session.sample(number, [only(7)])
            assert step.result(60) == answer
        assert list(answer.token_ids) == [7]


def wait_for_inflight(session: object, count: int) -> None:
    end_s = time.monotonic() + 60
    while len(session.state().inflight_step_numbers) < count:  # type: ignore[attr-defined]
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_the_same_with_asyncio(server: ServerThread) -> None:
    async def run() -> None:
        async with (
            aio.Client(server.address) as client,
            await client.open_session() as session,
        ):
            await session.step(prefill(await session.allocate_blocks({0: 4})))
            async with await session.stream() as stream:
                step = await stream.submit(DEFERRED)
                with pytest.raises(InvalidRequestError):
                    await stream.sample(step, [only(7, 8)])
                stream.sample(step, [only(9)])
                assert list((await step).token_ids) == [9]
            number = session.next_step_number
            waiting = asyncio.create_task(session.step(DEFERRED))
            answer = None
            while answer is None:
                with contextlib.suppress(StepNumberError):  # the step is not there yet
                    answer = await session.sample(number, [only(7)])
            assert list(answer.token_ids) == [7]
            assert await waiting == answer

    asyncio.run(run())
