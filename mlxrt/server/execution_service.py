"""ExecutionService: blocks, sequences, and the step in its four forms."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import grpc
from mlxrt_client.v1 import block_pb2, execution_pb2

from mlxrt.core.answers import SessionRef
from mlxrt.errors import field_invalid, limit_exceeded, unsupported
from mlxrt.server.decode_fields import decode_request_id, decode_tables
from mlxrt.server.execute_stream import StreamRegistry, execute_handler
from mlxrt.server.handler import parse, refused_client_stream, serialize, server_stream, unary
from mlxrt.server.runtime import Runtime
from mlxrt.server.session_service import decode_session
from mlxrt.telemetry.tallies import Tallies

NAME = "mlxrt.v1.ExecutionService"
_TABLE_BYTES = 16
"""Most bytes of a BlockTable beside its ids."""


class ExecutionService:
    """The rpcs, bytes to bytes.

    Args:
        runtime: answers the runtime, or raises LOADING or DEVICE_LOST.
        tallies: where what a stream refuses is counted.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        streams: StreamRegistry,
        tallies: Tallies | None = None,
    ) -> None:
        self._runtime = runtime
        self._streams = streams
        self._tallies = tallies or Tallies()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server serves."""
        rpcs: dict[str, Callable[[bytes], bytes | Awaitable[bytes]]] = {
            "AllocateBlocks": self.allocate,
            "FreeBlocks": self.free_blocks,
            "FreeSequences": self.free_sequences,
            "Step": lambda data: self._runtime().pipeline.run_step(data),
            "Prefill": lambda data: self._runtime().pipeline.run_prefill(data),
            "Decode": lambda data: self._runtime().pipeline.run_decode(data),
            "SampleStep": lambda data: self._runtime().pipeline.run_sampling(data),
        }
        handlers = {name: unary(name, run, self._examine) for name, run in rpcs.items()}
        handlers["Execute"] = execute_handler(
            lambda: self._runtime().pipeline, self._streams, self._tallies
        )
        handlers["ExportBlocks"] = server_stream("ExportBlocks", _refuse_export)
        handlers["ImportBlocks"] = refused_client_stream(unsupported("ImportBlocks"))
        return grpc.method_handlers_generic_handler(NAME, handlers)

    def _examine(self) -> None:
        self._runtime().dispatcher.examine()

    def allocate(self, data: bytes) -> bytes:
        """AllocateBlocks."""
        request = parse(execution_pb2.AllocateBlocksRequest, data)
        runtime = self._runtime()
        decode_request_id(request.request_id)
        counts: dict[int, int] = {}
        for index, entry in enumerate(request.counts):
            if entry.group in counts:
                raise field_invalid(f"counts[{index}].group", f"group {entry.group} stands twice")
            counts[entry.group] = entry.count
        _check_answer(runtime, counts, "counts")
        blocks = runtime.core.allocate_blocks(
            decode_session(request), request.request_id, counts, runtime.now_ms()
        )
        return serialize(
            execution_pb2.AllocateBlocksResponse(
                blocks=[
                    block_pb2.BlockTable(group=group, block_ids=blocks[group]) for group in counts
                ]
            )
        )

    def free_blocks(self, data: bytes) -> bytes:
        """FreeBlocks."""
        request = parse(execution_pb2.FreeBlocksRequest, data)
        runtime = self._runtime()
        decode_request_id(request.request_id)
        blocks_max = max(group.block_count for group in runtime.facts.groups)

        def check_count(path: str, count: int) -> None:
            if count > blocks_max:
                raise field_invalid(path, f"{count} blocks; no group has more than {blocks_max}")

        blocks = decode_tables(request.blocks, "blocks", check_count)
        free = runtime.core.free_blocks(
            decode_session(request), request.request_id, blocks, runtime.now_ms()
        )
        return serialize(
            execution_pb2.FreeBlocksResponse(
                free_blocks=[block_pb2.BlockCount(group=g, count=n) for g, n in enumerate(free)]
            )
        )

    def free_sequences(self, data: bytes) -> bytes:
        """FreeSequences."""
        request = parse(execution_pb2.FreeSequencesRequest, data)
        runtime = self._runtime()
        decode_request_id(request.request_id)
        count, maximum = len(request.sequence_ids), runtime.limits.max_sequences
        if count > maximum:
            raise limit_exceeded("max_sequences", maximum, count, "sequence_ids")
        if request.free_blocks:
            _check_freed(runtime, decode_session(request), request.sequence_ids)
        freed = runtime.core.free_sequences(
            decode_session(request), request.request_id, request.sequence_ids[:],
            runtime.now_ms(), free_blocks=request.free_blocks,
        )  # fmt: skip
        return serialize(
            execution_pb2.FreeSequencesResponse(
                freed_blocks=[
                    block_pb2.BlockTable(group=group, block_ids=ids)
                    for group, ids in sorted(freed.items())
                    if ids
                ]
            )
        )


def _answer_bytes(runtime: Runtime, counts: Mapping[int, int]) -> int:
    """Most bytes of an answer that names so many blocks, by group."""
    groups = runtime.facts.groups
    answer_bytes = 0
    for group, count in counts.items():
        if group < len(groups):
            pool = groups[group].block_count
            answer_bytes += min(count, pool) * -(-pool.bit_length() // 7) + _TABLE_BYTES
    return answer_bytes


def _check_answer(runtime: Runtime, counts: Mapping[int, int], path: str) -> None:
    """Refuses what more blocks would answer than a message can name."""
    answer_bytes, maximum = _answer_bytes(runtime, counts), runtime.limits.max_message_bytes
    if answer_bytes > maximum:
        raise limit_exceeded("max_message_bytes", maximum, answer_bytes, path)


def _check_freed(runtime: Runtime, ref: SessionRef, sequence_ids: Iterable[int]) -> None:
    """Refuses to free more blocks than one answer can name; looks only where there may be such."""
    pools = {index: group.block_count for index, group in enumerate(runtime.facts.groups)}
    if _answer_bytes(runtime, pools) <= runtime.limits.max_message_bytes:
        return
    state = runtime.core.read_session(
        ref, frozenset(sequence_ids), include_tables=True, include_tokens=False
    )
    named: dict[int, set[int]] = {}
    for sequence in state.sequences:
        for group, ids in sequence.tables.items():
            named.setdefault(group, set()).update(ids)
    counts = {group: len(ids - {0}) for group, ids in named.items()}
    _check_answer(runtime, counts, "sequence_ids")


async def _refuse_export(data: bytes) -> AsyncIterator[bytes]:
    parse(execution_pb2.ExportBlocksRequest, data)
    raise unsupported("ExportBlocks")
    yield b""
