"""No answer is larger than a message may be: what would be is refused first, or can't be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxrt_client.v1 import execution_pb2, session_pb2

from mlxrt.errors import Reason
from mlxrt.testing import FakeEngine

MESSAGE_BYTES = 1 << 16


def test_a_state_that_no_message_carries_is_refused_with_the_way_out(
    launch: Callable[..., Any],
) -> None:
    server = launch(limits={"max_message_bytes": MESSAGE_BYTES})
    session = server.open()
    for sequence_id in range(1, 10):
        prompt = [4000] * 4000  # two bytes each
        session.step(new_sequences=[{"sequence_id": sequence_id, "prompt_token_ids": prompt}])
    before = server.digest()
    request = session_pb2.GetSessionRequest(session=session.ref, include_tokens=True)
    refusal = server.refused("GetSession", request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["limit"] == "max_message_bytes"
    assert int(refusal.metadata["value"]) > MESSAGE_BYTES == int(refusal.metadata["maximum"])
    assert refusal.fields == ("include_tokens",)
    assert server.digest() == before
    assert len(session.state(include_tables=True).sequences) == 9
    some = session_pb2.GetSessionRequest(
        session=session.ref, include_tokens=True, sequence_ids=[2, 4, 6, 8]
    )
    assert [s.sequence_id for s in server.call("GetSession", some).sequences] == [2, 4, 6, 8]
    free = execution_pb2.FreeSequencesRequest(
        session=session.ref, request_id="free", sequence_ids=range(5, 10)
    )
    server.call("FreeSequences", free)
    assert len(session.state(include_tokens=True).sequences[3].token_ids) == 4000


def test_a_state_far_too_large_is_refused_at_little_cost(launch: Callable[..., Any]) -> None:
    server = launch(limits={"max_message_bytes": MESSAGE_BYTES})
    session = server.open()
    for sequence_id in range(1, 50):
        prompt = [4000] * 4000
        session.step(new_sequences=[{"sequence_id": sequence_id, "prompt_token_ids": prompt}])
    request = session_pb2.GetSessionRequest(session=session.ref, include_tokens=True)
    refusal = server.refused("GetSession", request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["value"] == str(49 * 4000), "the tokens were not written out"


def test_blocks_that_no_message_names_are_not_leased(launch: Callable[..., Any]) -> None:
    server = launch(
        FakeEngine(num_blocks=40_000, block_size=4), limits={"max_message_bytes": MESSAGE_BYTES}
    )
    session = server.open()
    before = server.digest()
    request = execution_pb2.AllocateBlocksRequest(
        session=session.ref, request_id="a", counts=[{"count": 39_999}]
    )
    refusal = server.refused("AllocateBlocks", request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["limit"] == "max_message_bytes"
    assert refusal.fields == ("counts",)
    assert server.digest() == before
    assert len(session.allocate(20_000)) == 20_000


def test_what_frees_more_blocks_than_a_message_names_is_refused(launch: Callable[..., Any]) -> None:
    server = launch(
        FakeEngine(num_blocks=40_000, block_size=4, max_model_length=1 << 15),
        limits={"max_message_bytes": MESSAGE_BYTES, "max_model_length": 1 << 15},
    )
    session = server.open()
    for sequence_id in (1, 2, 3):
        blocks = session.allocate(8192)
        session.step(
            new_sequences=[
                {
                    "sequence_id": sequence_id, "prompt_token_ids": [3],
                    "tables": [{"block_ids": blocks}],
                }
            ]
        )  # fmt: skip
    free = execution_pb2.FreeSequencesRequest(
        session=session.ref, request_id="free", sequence_ids=[1, 2, 3], free_blocks=True
    )
    before = server.digest()
    refusal = server.refused("FreeSequences", free)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["limit"] == "max_message_bytes"
    assert refusal.fields == ("sequence_ids",)
    assert server.digest() == before
    for ids in ([1], [2, 3]):
        free.ClearField("sequence_ids")
        free.sequence_ids.extend(ids)
        free.request_id = f"free {ids}"
        answer = server.call("FreeSequences", free)
        assert len(answer.freed_blocks[0].block_ids) == 8192 * len(ids)
        assert answer.ByteSize() <= MESSAGE_BYTES
        assert server.call("FreeSequences", free) == answer, "a repeat is answered from the store"


def test_the_largest_answer_to_a_step_fits(launch: Callable[..., Any]) -> None:
    vocabulary = 3900  # so that two rows of logits leave next to nothing of a message
    server = launch(
        FakeEngine(vocabulary_size=vocabulary, num_blocks=256, block_size=4),
        limits={
            "max_message_bytes": MESSAGE_BYTES, "max_step_sequences": 100, "max_top_logprobs": 200,
        },
    )  # fmt: skip
    limits = server.server.runtime.limits
    assert limits.max_top_logprobs > 0 and limits.max_step_drafts > 50
    session = server.open()
    blocks = session.allocate(100)
    # The last sequence's drafts are all accepted, each with its alternatives.
    drafts: list[int] = []
    while len(drafts) < limits.max_step_drafts:
        drafts.append(server.engine.expected_token([3, *drafts]))
    room = session.allocate(-(-len(drafts) // 4))
    fields: dict[str, list[Any]] = {"new_sequences": [], "items": []}
    for index, block in enumerate(blocks):
        one = session.prefill_fields(
            (1 << 64) - 1 - index, [3], [block], top_logprobs=limits.max_top_logprobs
        )
        one["items"][0].return_logits = index < limits.max_logits_rows
        if index == 99:
            one["items"][0].draft_token_ids.extend(drafts)
            one["new_sequences"][0].tables[0].block_ids.extend(room)
        for name in fields:
            fields[name] += one[name]
    reply = session.step(**fields)
    assert reply.results[99].accepted_draft_count == len(drafts)
    assert len(reply.results[99].top_logprobs[0].entries) == limits.max_top_logprobs
    assert reply.ByteSize() <= MESSAGE_BYTES
    assert server.call("Step", session.request(step_number=1, **fields)).replayed


def test_the_longest_prompt_logprobs_fit(launch: Callable[..., Any]) -> None:
    server = launch(
        FakeEngine(vocabulary_size=3900, num_blocks=128, block_size=4),
        limits={
            "max_message_bytes": MESSAGE_BYTES, "max_logits_rows": 0, "max_top_logprobs": 20,
            "max_step_sequences": 8,
        },
    )  # fmt: skip
    limits = server.server.runtime.limits
    rows, top = limits.max_prompt_logprobs_rows, limits.max_top_logprobs
    assert rows > 100 and top > 5
    session = server.open()
    fields = session.prefill_fields(1, [3899] * (rows + 1), session.allocate(rows // 4 + 1))
    fields["new_sequences"][0].prompt_top_logprobs = top
    reply = session.step(**fields)
    assert len(reply.results[0].prompt_logprobs.top_token_ids) == rows * top
    assert MESSAGE_BYTES // 4 < reply.ByteSize() <= MESSAGE_BYTES
