"""After a take-over nothing of the old owner's works: no repeat, no request id."""

from __future__ import annotations

from typing import Any

from mlxrt_client.v1 import execution_pb2, session_pb2

from mlxrt.errors import Reason


def take_over(server: Any, session: Any, request_id: str) -> session_pb2.ResumeSessionRequest:
    """Takes the session over and answers the request that did it."""
    request = session_pb2.ResumeSessionRequest(request_id=request_id, session=session.ref)
    session.ref = server.call("ResumeSession", request).session
    return request


def test_a_repeat_of_an_overtaken_take_over_is_refused(server: Any) -> None:
    session = server.open()
    first = take_over(server, session, "first")
    assert server.call("ResumeSession", first).session == session.ref
    take_over(server, session, "second")
    before = server.digest()
    assert server.refused("ResumeSession", first).reason is Reason.EPOCH_STALE
    assert server.digest() == before, "an owner that was fenced out renewed the lease"


def test_the_new_owner_s_request_ids_are_its_own(server: Any) -> None:
    session = server.open()

    def allocate() -> list[int]:
        request = execution_pb2.AllocateBlocksRequest(
            session=session.ref, request_id="1", counts=[{"count": 2}]
        )
        return list(server.call("AllocateBlocks", request).blocks[0].block_ids)

    old = allocate()
    assert allocate() == old
    take_over(server, session, "take")
    new = allocate()
    assert not set(new) & set(old)
    assert list(session.state().leased_blocks[0].block_ids) == sorted(old + new)


def test_as_many_requests_are_remembered_as_the_contract_says(server: Any) -> None:
    session = server.open()

    def allocate() -> list[int]:
        request = execution_pb2.AllocateBlocksRequest(
            session=session.ref, request_id="the one", counts=[{"count": 1}]
        )
        return list(server.call("AllocateBlocks", request).blocks[0].block_ids)

    def others(count: int) -> None:
        for _ in range(count):
            request = execution_pb2.FreeBlocksRequest(
                session=session.ref, request_id=server.request_id()
            )
            server.call("FreeBlocks", request)

    first = allocate()
    others(63)
    assert allocate() == first
    others(1)
    assert allocate() != first


def test_as_many_opened_sessions_are_remembered_as_the_contract_says(launch: Any) -> None:
    server = launch(limits={"max_sessions": 300})
    request = session_pb2.OpenSessionRequest(request_id="the one")
    first = server.call("OpenSession", request)
    for _ in range(255):
        server.open()
    assert server.call("OpenSession", request) == first
    server.open()
    assert server.call("OpenSession", request).session.session_id != first.session.session_id
