"""Prefill and Decode refuse as Step does, in the words of the message that was sent."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from mlxrt_client.v1 import execution_pb2

from mlxrt.errors import Reason

CHUNK = {"sequence": {"sequence_id": 1, "prompt_token_ids": [5]}, "row_count": 1}


@pytest.mark.parametrize(
    ("rpc", "request_without_session"),
    [
        ("Prefill", execution_pb2.PrefillRequest(step_number=1, chunks=[CHUNK])),
        ("Decode", execution_pb2.DecodeRequest(step_number=1, sequence_ids=[1])),
    ],
)
def test_the_session_is_required(server: Any, rpc: str, request_without_session: Message) -> None:
    refusal = server.refused(rpc, request_without_session)
    assert refusal.reason is Reason.FIELD_INVALID
    assert refusal.fields == ("session",)


def test_too_many_registrations_are_told_as_chunks(launch: Any) -> None:
    server = launch(limits={"max_sequences": 3})
    session = server.open()
    chunks = [
        {"sequence": {"sequence_id": i, "prompt_token_ids": [5]}, "row_count": 1} for i in range(4)
    ]
    request = execution_pb2.PrefillRequest(session=session.ref, step_number=1, chunks=chunks)
    refusal = server.refused("Prefill", request)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert refusal.metadata["limit"] == "max_sequences"
    assert refusal.fields == ("chunks",)
    assert refusal.message.startswith("chunks:")
