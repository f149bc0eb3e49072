"""The clients against a real server on the fake model: broken connections, leases, typed errors."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from mlxrt_client import Client, RetryPolicy, Scheduler, Session, aio, messages, v1
from mlxrt_client.errors import (
    AlreadyExistsError,
    DeviceLostError,
    FencedError,
    InvalidRequestError,
    LimitError,
    MlxrtError,
    NotFoundError,
    OutOfBlocksError,
    PreconditionError,
    SessionLostError,
    StepDiscardedError,
    TransportError,
    UnavailableError,
    UnsupportedError,
)

from mlxrt.testing import FakeEngine, FakeFaults
from mlxrt.testing.server_thread import ServerThread

QUICK = RetryPolicy(patience_s=60, initial_delay_s=0.01)
IMPATIENT = RetryPolicy(patience_s=0)
SHORT_LEASES = {"min_lease_ttl_ms": 50}


class Proxy:
    """Forwards connections to a server, until told to cut them or to swallow the answers.

    While `away` it closes new connections at once.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.swallowing = threading.Event()
        self.away = False
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Breaks every connection; new ones are forwarded whole."""
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.swallowing.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.away:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
                threading.Thread(
                    target=self._pump, args=(far, near, self.swallowing), daemon=True
                ).start()

    @staticmethod
    def _pump(
        source: socket.socket, target: socket.socket, swallowing: threading.Event | None = None
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if swallowing is None or not swallowing.is_set():
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def prefill(sequence_id: int, prompt: list[int], blocks: dict[int, list[int]]) -> v1.StepRequest:
    """Registers a sequence and runs its whole prompt."""
    return v1.StepRequest(
        new_sequences=[messages.new_sequence(sequence_id, prompt, blocks)],
        items=[messages.chunk_item(sequence_id, len(prompt), sample=True)],
    )


def decode(*sequence_ids: int) -> v1.StepRequest:
    """One token for each sequence."""
    return v1.StepRequest(decode_sequence_ids=sequence_ids)


@pytest.fixture
def engine() -> FakeEngine:
    """The engine of `client`'s server."""
    return FakeEngine(block_size=4, num_blocks=40)


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[Client]:
    """A client that tries everything once."""
    limits = {**SHORT_LEASES, "max_step_rows": 64}
    with (
        ServerThread(engine, limits=limits) as server,
        Client(server.address, retry=IMPATIENT) as made,
    ):
        yield made


def test_a_scheduler_survives_cut_connections_and_no_step_runs_twice(engine: FakeEngine) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(1, 9)]
    with (
        ServerThread(engine) as server,
        Proxy(server.address) as proxy,
        Client(proxy.address, retry=QUICK) as client,
        client.open_session() as session,
    ):
        scheduler = Scheduler(session, client.model_info(), client.server_info().limits)
        found: dict[int, list[Any]] = {scheduler.add(p, 16): [] for p in prompts}
        cut_count = 0
        for count, token in enumerate(scheduler.run()):
            found[token.sequence_id].append(token.token_id)
            if count % 30 == 29:
                proxy.cut()
                cut_count += 1
        assert cut_count >= 3
        for tokens, prompt in zip(found.values(), prompts, strict=True):
            known = list(prompt)
            for _ in range(16):
                known.append(engine.expected_token(known))
            assert tokens == known[3:]
        assert engine.plans_run == session.next_step_number - 1


def test_an_answer_lost_on_the_way_is_replayed_on_the_next_stream(
    engine: FakeEngine, wait_until: Callable[..., None]
) -> None:
    with (
        ServerThread(engine) as server,
        Proxy(server.address) as proxy,
        Client(proxy.address, retry=QUICK) as client,
        client.open_session() as session,
    ):
        blocks = session.allocate_blocks({0: 2})
        with session.stream() as stream:
            first = stream.submit(prefill(1, [1, 2, 3], blocks)).result(60)
            assert not first.replayed
            proxy.swallowing.set()
            futures = [stream.submit(decode(1)), stream.submit(decode(1))]
            wait_until(lambda: engine.plans_run == 3)
            proxy.cut()
            second, third = [future.result(60) for future in futures]
            assert second.replayed and third.replayed
            assert stream.connection_count == 2
        assert engine.plans_run == 3
        known = [1, 2, 3, first.results[0].token_ids[0], *second.token_ids, *third.token_ids]
        for end in (3, 4, 5):
            assert known[end] == engine.expected_token(known[:end])


def test_an_answer_lost_on_the_way_is_replayed_to_a_unary_call(
    engine: FakeEngine, wait_until: Callable[..., None]
) -> None:
    with (
        ServerThread(engine) as server,
        Proxy(server.address) as proxy,
        Client(proxy.address, retry=QUICK) as client,
        client.open_session() as session,
    ):
        blocks = session.allocate_blocks({0: 1})
        proxy.swallowing.set()
        cutting = threading.Thread(
            target=lambda: (wait_until(lambda: engine.plans_run == 1), proxy.cut())
        )
        cutting.start()
        response = session.step(prefill(1, [1, 2, 3], blocks))
        cutting.join()
        assert response.replayed
        assert engine.plans_run == 1
        assert session.decode([1]).step_number == 2


async def test_asyncio_streams_are_replayed_too(
    engine: FakeEngine, wait_until: Callable[..., None]
) -> None:
    with ServerThread(engine) as server, Proxy(server.address) as proxy:
        async with (
            aio.Client(proxy.address, retry=QUICK) as client,
            await client.open_session() as session,
        ):
            blocks = await session.allocate_blocks({0: 2})
            async with await session.stream() as stream:
                await (await stream.submit(prefill(1, [1, 2, 3], blocks)))
                proxy.swallowing.set()
                futures = [await stream.submit(decode(1)), await stream.submit(decode(1))]
                await asyncio.to_thread(wait_until, lambda: engine.plans_run == 3)
                proxy.cut()
                answers = await asyncio.gather(*futures)
            assert [answer.replayed for answer in answers] == [True, True]
            assert stream.connection_count == 2
            response = await session.decode([1])
            assert response.step_number == 4 and engine.plans_run == 4
            state = await session.state(tokens=True)
            known = list(state.sequences[0].token_ids)
            assert len(known) == 7
            assert all(known[i] == engine.expected_token(known[:i]) for i in range(3, 7))


def test_the_lease_is_kept_while_the_client_lives_and_ends_with_it(
    client: Client, wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals, renew = [], Session.renew
    monkeypatch.setattr(Session, "renew", lambda *args: renewals.append(renew(*args)))
    # Shorter, and a machine that halts for less than the server notices ends it.
    with client.open_session(lease_ttl_ms=1_500) as session:
        blocks = session.allocate_blocks({0: 3})
        wait_until(lambda: len(renewals) > 3)  # three in each lease: one lease is over
        assert messages.tables_of(session.state().leased_blocks) == blocks
        assert session.lost is None
        session.abandon()
        with client.open_session() as other:
            wait_until(lambda: bool(try_to_lease(other, 39)))
        with pytest.raises(SessionLostError):
            session.state()


def try_to_lease(session: Any, count: int) -> Any:
    """Returns `count` blocks, or None while there are too few."""
    try:
        return session.allocate_blocks({0: count})
    except OutOfBlocksError:
        return None


def test_a_session_taken_over_goes_on_where_it_was(client: Client, engine: FakeEngine) -> None:
    with client.open_session() as old:
        blocks = old.allocate_blocks({0: 2})
        first = old.step(prefill(1, [7, 8], blocks)).results[0].token_ids[0]
        new = client.resume_session(old.ref)
        assert (new.ref.epoch, new.next_step_number) == (2, 2)
        with pytest.raises(FencedError) as caught:
            old.decode([1])
        assert caught.value.reason == "EPOCH_STALE"
        assert list(new.decode([1]).token_ids) == [engine.expected_token([7, 8, first])]
        new.close()


def test_a_take_over_waits_for_the_step_that_runs(
    wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(block_size=4, num_blocks=40, threaded=True)
    with ServerThread(engine) as server, Client(server.address, retry=QUICK) as client:
        old = client.open_session()
        first = old.step(prefill(1, [7, 8], old.allocate_blocks({0: 2}))).results[0].token_ids[0]
        engine.hold()
        stream = old.stream()
        lost = [stream.submit(decode(1)), stream.submit(decode(1))]
        wait_until(lambda: len(old.state().inflight_step_numbers) == 2)
        looks, state = [], Session.state

        def look(session: Session) -> Any:
            """The second look, behind one that found a step in flight, lets the steps go on."""
            looks.append(list(state(session).inflight_step_numbers))
            if len(looks) == 2:
                engine.release()
            return state(session)

        monkeypatch.setattr(Session, "state", look)
        new = client.resume_session(old.ref)
        assert looks[:2] == [[2, 3], [2, 3]]
        assert list(new.decode([1]).token_ids) == [engine.expected_token([7, 8, first])]
        with pytest.raises(MlxrtError) as caught:
            lost[0].result(60)
        assert caught.value.reason == "EPOCH_STALE"
        old.abandon()
        stream.cancel()
        new.close()


async def test_an_asyncio_take_over_waits_for_the_step_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(block_size=4, num_blocks=40, threaded=True)
    with ServerThread(engine) as server:
        async with aio.Client(server.address, retry=QUICK) as client:
            old = await client.open_session()
            blocks = await old.allocate_blocks({0: 2})
            first = (await old.step(prefill(1, [7, 8], blocks))).results[0].token_ids[0]
            engine.hold()
            stream = await old.stream()
            lost = [await stream.submit(decode(1)), await stream.submit(decode(1))]
            while len((await old.state()).inflight_step_numbers) < 2:
                pass
            looks, state = [], aio.Session.state

            async def look(session: aio.Session) -> Any:
                looks.append(list((await state(session)).inflight_step_numbers))
                if len(looks) == 2:
                    engine.release()
                return await state(session)

            monkeypatch.setattr(aio.Session, "state", look)
            new = await client.resume_session(old.ref)
            assert looks[:2] == [[2, 3], [2, 3]]
            reply = await new.decode([1])
            assert list(reply.token_ids) == [engine.expected_token([7, 8, first])]
            assert {type(end) for end in await asyncio.gather(*lost, return_exceptions=True)} == {
                FencedError
            }
            await old.abandon()
            await stream.cancel()
            await new.close()


def test_a_stream_that_another_one_replaced_is_fenced(
    client: Client, wait_until: Callable[..., None]
) -> None:
    with client.open_session() as session:
        blocks = session.allocate_blocks({0: 2})
        stream = session.stream()
        with pytest.raises(RuntimeError, match="still open"):
            session.stream()
        assert stream.submit(prefill(1, [7, 8], blocks)).result(60).step_number == 1
        step = v1.StepRequest(session=session.ref, step_number=2, decode_sequence_ids=[1])
        answers = client.execution.Execute(iter([v1.ExecuteRequest(step=step)]))
        assert [answer.step.step_number for answer in answers] == [2]
        wait_until(lambda: stream.closed)
        with pytest.raises(FencedError) as caught:
            stream.submit(decode(1))
        assert caught.value.reason == "STREAM_REPLACED"
        stream.cancel()


ERRORS: dict[str, tuple[type[MlxrtError], str, Callable[[Any], object]]] = {
    "no free blocks": (OutOfBlocksError, "NO_FREE_BLOCKS", lambda s: s.allocate_blocks({0: 39})),
    "group": (InvalidRequestError, "FIELD_INVALID", lambda s: s.allocate_blocks({7: 1})),
    "foreign block": (PreconditionError, "BLOCK_NOT_LEASED", lambda s: s.free_blocks({0: [39]})),
    "sequence": (NotFoundError, "SEQUENCE_UNKNOWN", lambda s: s.decode([5])),
    "registered": (
        AlreadyExistsError, "SEQUENCE_EXISTS",
        lambda s: s.step(v1.StepRequest(new_sequences=[messages.new_sequence(1, [1])])),
    ),
    "token id": (
        InvalidRequestError, "FIELD_INVALID",
        lambda s: s.step(v1.StepRequest(new_sequences=[messages.new_sequence(2, [4096])])),
    ),
    "rows": (
        LimitError, "LIMIT_EXCEEDED",
        lambda s: s.step(v1.StepRequest(items=[messages.chunk_item(1, 65, sample=False)])),
    ),
    "later": (
        UnsupportedError, "FEATURE_UNSUPPORTED",
        lambda s: s.step(
            v1.StepRequest(items=[v1.StepItem(sequence_id=1, return_hidden_state=True)])
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ERRORS))
def test_refusals_are_typed_and_change_nothing(client: Client, case: str) -> None:
    kind, reason, act = ERRORS[case]
    with client.open_session() as session:
        session.step(prefill(1, [1] * 9, session.allocate_blocks({0: 3})))
        before = session.state(tables=True, tokens=True)
        with pytest.raises(kind) as caught:
            act(session)
        error = caught.value
        assert type(error) is kind
        assert error.reason == reason and not error.accepted and str(error).startswith(reason)
        assert error.problems or error.metadata
        assert (error.retry_delay_s is not None) == (reason == "NO_FREE_BLOCKS")
        after = session.state(tables=True, tokens=True)
        before.lease_ttl_ms = after.lease_ttl_ms
        assert after == before
        assert session.decode([1]).step_number == 2


def test_a_failed_forward_is_an_accepted_step_that_did_not_commit() -> None:
    engine = FakeEngine(faults=FakeFaults(fail_tickets={2}))
    with (
        ServerThread(engine) as server,
        Client(server.address, retry=IMPATIENT) as client,
        client.open_session() as session,
    ):
        session.step(prefill(1, [1, 2], session.allocate_blocks({0: 1})))
        with pytest.raises(StepDiscardedError) as caught:
            session.decode([1])
        assert caught.value.accepted and caught.value.reason == "EXECUTION_FAILED"
        assert session.state().sequences[0].position == 2
        assert session.decode([1]).step_number == 3


def test_a_stream_that_was_given_up_is_followed_by_another(
    engine: FakeEngine, wait_until: Callable[..., None]
) -> None:
    brief = RetryPolicy(patience_s=0.2, initial_delay_s=0.02)
    with (
        ServerThread(engine) as server,
        Proxy(server.address) as proxy,
        Client(proxy.address, retry=brief) as client,
        client.open_session() as session,
    ):
        blocks = session.allocate_blocks({0: 2})
        stream = session.stream()
        proxy.swallowing.set()
        future = stream.submit(prefill(1, [1, 2], blocks))
        wait_until(lambda: engine.plans_run == 1)
        proxy.away = True
        proxy.cut()
        with pytest.raises(TransportError):
            future.result(60)
        with pytest.raises(TransportError):
            stream.submit(decode(1))
        stream.close()
        proxy.away = False
        # The first step had run; the session asks for the number that is due.
        wait_until(lambda: opens_another(session))
        with session.stream() as other:
            response = other.submit(decode(1)).result(60)
        assert response.step_number == 2 and not response.replayed
        assert engine.plans_run == 2


def opens_another(session: Any) -> bool:
    """Returns whether the server can be reached again."""
    with suppress(TransportError):
        return bool(session.state())
    return False


def test_a_lost_device_is_told_from_a_broken_connection() -> None:
    faults = FakeFaults()
    engine = FakeEngine(threaded=True, faults=faults)
    with ServerThread(engine) as server, Client(server.address, retry=IMPATIENT) as client:
        session = client.open_session()
        blocks = session.allocate_blocks({0: 1})
        stream = session.stream()
        stream.submit(prefill(1, [1, 2], blocks)).result(60)
        faults.lose_ticket = 2
        with pytest.raises(DeviceLostError):
            stream.submit(decode(1)).result(60)
        stream.cancel()
        server.stop()
        with pytest.raises((TransportError, DeviceLostError)):
            session.state()
        session.abandon()


def test_loading_is_waited_for_or_told(wait_until: Callable[..., None]) -> None:
    gate = threading.Event()
    engine = FakeEngine(threaded=True, load_gate=gate)
    server = ServerThread(engine, start_timeout_s=0.01, address="127.0.0.1:0")
    with pytest.raises(RuntimeError, match="does not serve"):
        server.__enter__()
    wait_until(lambda: server.address != "")
    with Client(server.address, retry=IMPATIENT) as client:
        assert client.server_info().state == v1.ServerState.SERVER_STATE_LOADING
        with pytest.raises(UnavailableError) as caught:
            client.model_info()
        assert caught.value.reason == "LOADING" and caught.value.retry_delay_s is not None
    threading.Timer(0.1, gate.set).start()
    with Client(server.address, retry=QUICK) as client:
        assert client.model_info().model_name == "fake"
    server.stop()
