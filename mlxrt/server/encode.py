"""Core to proto: replies to steps, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlxrt_client.v1 import block_pb2, step_pb2, tensor_pb2

from mlxrt.core.step import ItemReply, SampledRow, StepReply
from mlxrt.server.errors import encode_error

_UINT32_MAX = 0xFFFFFFFF
_FLOAT32_BYTES = 4


def encode_step(message: step_pb2.StepResponse, reply: StepReply, replayed: bool) -> None:
    """Fills an empty `message` with the answer to a step."""
    message.step_number = reply.step_number
    message.replayed = replayed
    if reply.error is not None:
        message.error.CopyFrom(encode_error(reply.error))
        return
    message.token_ids.extend(reply.token_ids)
    if reply.logprobs:
        message.logprobs.extend(reply.logprobs)
    message.bucket_row_count = reply.bucket_row_count
    for group, count in enumerate(reply.free_blocks):
        message.free_blocks.add(group=group, count=count)
    timings, spent = message.timings, reply.timings
    timings.queue_us = min(spent.queue_us, _UINT32_MAX)
    timings.build_us = min(spent.build_us, _UINT32_MAX)
    timings.device_us = min(spent.device_us, _UINT32_MAX)
    timings.sample_us = min(spent.sample_us, _UINT32_MAX)
    for detail in reply.details:
        _encode_result(message.results.add(), detail)
    for item in reply.items:
        _encode_result(message.results.add(), item)


def _encode_result(message: step_pb2.SequenceResult, item: ItemReply) -> None:
    row = item.row
    message.sequence_id = item.sequence_id
    message.position = item.position
    if row.failure is not None:
        message.error.CopyFrom(encode_error(row.failure))
        return
    for accepted in row.accepted:
        _encode_token(message, accepted)
    message.accepted_draft_count = len(row.accepted)
    _encode_token(message, row)
    if row.prompt is not None:
        described, prompt = message.prompt_logprobs, row.prompt
        described.first_position = prompt.first_position
        described.logprobs.extend(prompt.logprobs)
        described.ranks.extend(prompt.ranks)
        described.top_count = prompt.top_count
        described.top_token_ids.extend(prompt.top_ids)
        described.top_logprobs.extend(prompt.top_logprobs)
    if row.logits is not None:
        message.logits.data_type = tensor_pb2.DATA_TYPE_FLOAT32
        message.logits.shape.append(len(row.logits) // _FLOAT32_BYTES)
        message.logits.data = row.logits


def _encode_token(message: step_pb2.SequenceResult, row: SampledRow) -> None:
    if row.token is not None:
        message.token_ids.append(row.token)
    if row.logprob is not None:
        message.logprobs.append(row.logprob)
    if row.top:
        alternatives = message.top_logprobs.add(sampled_rank=row.rank)
        for token_id, logprob in row.top:
            alternatives.entries.add(token_id=token_id, logprob=logprob)


def encode_tables(tables: Mapping[int, Sequence[int]]) -> list[block_pb2.BlockTable]:
    """One table per group that has any block, by ascending group."""
    return [
        block_pb2.BlockTable(group=group, block_ids=ids)
        for group, ids in sorted(tables.items())
        if ids
    ]
