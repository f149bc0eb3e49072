"""Prefill and Decode, the readable special cases: each becomes the step that it stands for."""

from __future__ import annotations

from mlxrt_client.v1 import execution_pb2, sequence_pb2
from mlxrt_client.v1.step_pb2 import StepRequest

from mlxrt.core.model import Limits
from mlxrt.errors import field_invalid, limit_exceeded
from mlxrt.server.relocate import PathMap, in_decode, in_prefill


def step_of_prefill(
    message: execution_pb2.PrefillRequest, limits: Limits
) -> tuple[StepRequest, PathMap]:
    """The step, and the way back for field paths.

    Raises:
        FIELD_INVALID: no chunk, a chunk without rows, two different ids in one chunk.
        LIMIT_EXCEEDED: max_step_sequences.
    """
    if not message.chunks:
        raise field_invalid("chunks", "at least one")
    if len(message.chunks) > limits.max_step_sequences:
        raise limit_exceeded(
            "max_step_sequences", limits.max_step_sequences, len(message.chunks), "chunks"
        )
    step = _step_of(message)
    sequence_chunks: dict[int, int] = {}
    for index, chunk in enumerate(message.chunks):
        sequence_id = chunk.sequence_id
        if chunk.HasField("sequence"):
            if sequence_id not in (0, chunk.sequence.sequence_id):
                raise field_invalid(
                    f"chunks[{index}].sequence_id", "0 or the id of `sequence` beside it"
                )
            sequence_id = chunk.sequence.sequence_id
            sequence_chunks[len(step.new_sequences)] = index
            step.new_sequences.append(chunk.sequence)
        if chunk.row_count == 0:
            raise field_invalid(f"chunks[{index}].row_count", "at least 1")
        item = step.items.add(
            sequence_id=sequence_id, row_count=chunk.row_count, sample=chunk.sample,
            registered=sequence_pb2.RegisteredTokens(),
        )  # fmt: skip
        if chunk.HasField("start_position"):
            item.start_position = chunk.start_position
        if chunk.append:
            item.append.tables.extend(chunk.append)
    return step, in_prefill(sequence_chunks)


def step_of_decode(
    message: execution_pb2.DecodeRequest, limits: Limits
) -> tuple[StepRequest, PathMap]:
    """The step, its items in the order of sequence_ids, and the way back for field paths.

    Raises:
        FIELD_INVALID: no sequence, blocks for a sequence that is not there or twice for one.
        LIMIT_EXCEEDED: max_step_sequences.
    """
    for path in ("sequence_ids", "appended"):
        count = len(getattr(message, path))
        if count > limits.max_step_sequences:
            raise limit_exceeded("max_step_sequences", limits.max_step_sequences, count, path)
    if not message.sequence_ids:
        raise field_invalid("sequence_ids", "at least one")
    here = set(message.sequence_ids)
    appended: dict[int, int] = {}
    for index, blocks in enumerate(message.appended):
        path = f"appended[{index}].sequence_id"
        if blocks.sequence_id not in here:
            raise field_invalid(path, f"sequence {blocks.sequence_id} is not in sequence_ids")
        if blocks.sequence_id in appended:
            raise field_invalid(path, f"sequence {blocks.sequence_id} stands twice")
        appended[blocks.sequence_id] = index
    step = _step_of(message)
    decode_indexes: dict[int, int] = {}
    item_indexes: dict[int, int] = {}
    appended_indexes: dict[int, int] = {}
    for index, sequence_id in enumerate(message.sequence_ids):
        if sequence_id not in appended:
            decode_indexes[len(step.decode_sequence_ids)] = index
            step.decode_sequence_ids.append(sequence_id)
            continue
        item_indexes[len(step.items)] = index
        appended_indexes[len(step.items)] = appended[sequence_id]
        item = step.items.add(
            sequence_id=sequence_id, row_count=1, sample=True,
            last_sampled=sequence_pb2.LastSampledToken(),
        )  # fmt: skip
        item.append.tables.extend(message.appended[appended[sequence_id]].append)
    return step, in_decode(decode_indexes, item_indexes, appended_indexes)


def _step_of(message: execution_pb2.PrefillRequest | execution_pb2.DecodeRequest) -> StepRequest:
    """An empty step with the message's session, unset where the message has none, and number."""
    step = StepRequest(step_number=message.step_number)
    if message.HasField("session"):
        step.session.CopyFrom(message.session)
    return step
