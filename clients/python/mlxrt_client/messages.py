"""Builds requests from plain Python values. Pure; the sync and the asyncio client share it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence

from mlxrt_client.v1 import (
    AllocateBlocksRequest,
    AppendBlocks,
    BlockCount,
    BlockTable,
    DataType,
    DecodeRequest,
    ExplicitTokens,
    FreeBlocksRequest,
    FreeSequencesRequest,
    GetSessionRequest,
    GetTokenizerResponse,
    LastSampledToken,
    LeadingHoles,
    NewSequence,
    OpenSessionRequest,
    RegisteredTokens,
    ReplaceTables,
    ResumeSessionRequest,
    SamplingParams,
    SequenceBlocks,
    SessionRef,
    StepItem,
    Tensor,
    TokenMask,
)

Tables = Mapping[int, Sequence[int]]
"""Block ids by group."""


def new_request_id() -> str:
    """Returns a fresh id for a request and its repeats."""
    return uuid.uuid4().hex


def block_tables(tables: Tables) -> list[BlockTable]:
    """Returns one BlockTable for each group of `tables` that has blocks."""
    return [BlockTable(group=group, block_ids=ids) for group, ids in tables.items() if ids]


def tables_of(messages: Iterable[BlockTable]) -> dict[int, list[int]]:
    """Returns the block ids of `messages` by group."""
    return {message.group: list(message.block_ids) for message in messages}


def new_sequence(
    sequence_id: int,
    prompt_token_ids: Sequence[int],
    tables: Tables | None = None,
    sampling: SamplingParams | None = None,
    prompt_top_logprobs: int | None = None,
) -> NewSequence:
    """Returns a registration; without `sampling` the sequence is greedy.

    With `prompt_top_logprobs` its items answer logprobs of the prompt, with so many alternatives.
    """
    return NewSequence(
        sequence_id=sequence_id,
        prompt_token_ids=prompt_token_ids,
        tables=block_tables(tables or {}),
        sampling=sampling,
        prompt_top_logprobs=prompt_top_logprobs,
    )


def chunk_item(
    sequence_id: int,
    row_count: int,
    *,
    sample: bool,
    start_position: int | None = None,
    append: Tables | None = None,
    replace: Tables | None = None,
    draft_token_ids: Sequence[int] = (),
    leading_holes: Mapping[int, int] | None = None,
) -> StepItem:
    """Returns rows whose tokens the server knows: of a prompt, or of a resumed sequence.

    With `draft_token_ids` it verifies them behind the rows, and `sample` must be true.
    """
    item = StepItem(
        sequence_id=sequence_id,
        start_position=start_position,
        row_count=row_count,
        registered=RegisteredTokens(),
        sample=sample,
        draft_token_ids=draft_token_ids,
        leading_holes=_holes(leading_holes or {}),
    )
    return _change_tables(item, append, replace)


def decode_item(
    sequence_id: int,
    *,
    append: Tables | None = None,
    leading_holes: Mapping[int, int] | None = None,
    draft_token_ids: Sequence[int] = (),
) -> StepItem:
    """Returns one row from the token sampled last, for a sequence that needs a block as well or has
    drafts to verify.
    """
    item = StepItem(
        sequence_id=sequence_id,
        row_count=1,
        last_sampled=LastSampledToken(),
        sample=True,
        draft_token_ids=draft_token_ids,
        leading_holes=_holes(leading_holes or {}),
    )
    return _change_tables(item, append, None)


def explicit_item(
    sequence_id: int,
    token_ids: Sequence[int],
    *,
    sample: bool,
    start_position: int | None = None,
    append: Tables | None = None,
) -> StepItem:
    """Returns rows that take these tokens, which replace what was known from their position on."""
    item = StepItem(
        sequence_id=sequence_id,
        start_position=start_position,
        row_count=len(token_ids),
        explicit=ExplicitTokens(token_ids=token_ids),
        sample=sample,
    )
    return _change_tables(item, append, None)


def packed_tokens(vocabulary_size: int, token_ids: Iterable[int]) -> bytes:
    """Returns one row of a mask that allows these tokens and no other.

    Raises:
        ValueError: a token is not of the vocabulary.
    """
    row = bytearray(4 * _mask_words(vocabulary_size))
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary_size:
            raise ValueError(f"token {token_id} is not below {vocabulary_size}")
        row[token_id >> 3] |= 1 << (token_id & 7)
    return bytes(row)


def token_mask(sequence_id: int, vocabulary_size: int, rows: Sequence[bytes]) -> TokenMask:
    """Returns the mask of a sequence: a row for the last row of its item, and one for each of its
    drafts.

    Args:
        sequence_id: of the step.
        vocabulary_size: of the model.
        rows: each one bit for each token, in little-endian words of 32 bits, least significant
            first: what `packed_tokens` gives, or a row of xgrammar's bitmask as bytes.

    Raises:
        ValueError: a row has another length.
    """
    words = _mask_words(vocabulary_size)
    if any(len(row) != 4 * words for row in rows):
        raise ValueError(f"a row has {4 * words} bytes")
    data = b"".join(rows)
    allowed = Tensor(data_type=DataType.DATA_TYPE_INT32, shape=[len(rows), words], data=data)
    return TokenMask(sequence_id=sequence_id, allowed=allowed)


def _mask_words(vocabulary_size: int) -> int:
    return -(-vocabulary_size // 32)


def preempt_item(sequence_id: int) -> StepItem:
    """Returns the item that takes a sequence's tables away and leaves its tokens."""
    return StepItem(sequence_id=sequence_id, replace=ReplaceTables())


def holes_item(sequence_id: int, leading_holes: Mapping[int, int]) -> StepItem:
    """Returns the item that turns the first entries of a table, by group, into holes."""
    return StepItem(sequence_id=sequence_id, leading_holes=_holes(leading_holes))


def _holes(leading_holes: Mapping[int, int]) -> list[LeadingHoles]:
    return [LeadingHoles(group=group, count=count) for group, count in leading_holes.items()]


def _change_tables(item: StepItem, append: Tables | None, replace: Tables | None) -> StepItem:
    if append is not None and replace is not None:
        raise ValueError("an item appends to its tables or replaces them, not both")
    if append is not None:
        item.append.CopyFrom(AppendBlocks(tables=block_tables(append)))
    if replace is not None:
        item.replace.CopyFrom(ReplaceTables(tables=block_tables(replace)))
    return item


def open_session(lease_ttl_ms: int, client_name: str) -> OpenSessionRequest:
    """Returns a request with an id of its own."""
    return OpenSessionRequest(
        request_id=new_request_id(), lease_ttl_ms=lease_ttl_ms, client_name=client_name
    )


def resume_session(session: SessionRef) -> ResumeSessionRequest:
    """Returns a request with an id of its own."""
    return ResumeSessionRequest(request_id=new_request_id(), session=session)


def get_session(
    session: SessionRef, tables: bool, tokens: bool, sequence_ids: Iterable[int]
) -> GetSessionRequest:
    """A GetSessionRequest."""
    return GetSessionRequest(
        session=session, include_tables=tables, include_tokens=tokens, sequence_ids=sequence_ids
    )


def allocate_blocks(session: SessionRef, counts: Mapping[int, int]) -> AllocateBlocksRequest:
    """Returns a request with an id of its own, for `counts` blocks by group."""
    return AllocateBlocksRequest(
        session=session,
        request_id=new_request_id(),
        counts=[BlockCount(group=group, count=count) for group, count in counts.items()],
    )


def free_blocks(session: SessionRef, blocks: Tables) -> FreeBlocksRequest:
    """Returns a request with an id of its own."""
    return FreeBlocksRequest(
        session=session, request_id=new_request_id(), blocks=block_tables(blocks)
    )


def free_sequences(
    session: SessionRef, sequence_ids: Sequence[int], *, and_blocks: bool
) -> FreeSequencesRequest:
    """Returns a request with an id of its own."""
    return FreeSequencesRequest(
        session=session,
        request_id=new_request_id(),
        sequence_ids=sequence_ids,
        free_blocks=and_blocks,
    )


def decode_request(
    sequence_ids: Sequence[int], appended: Mapping[int, Tables] | None
) -> DecodeRequest:
    """Returns a request for one token of each sequence, with blocks to append by sequence id."""
    blocks = [
        SequenceBlocks(sequence_id=sequence_id, append=block_tables(tables))
        for sequence_id, tables in (appended or {}).items()
    ]
    return DecodeRequest(sequence_ids=sequence_ids, appended=blocks)


class FileAssembly:
    """Puts the tokenizer's files together from the pieces that GetTokenizer streams."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[bytes]] = {}
        self._digests: dict[str, str] = {}

    def add(self, piece: GetTokenizerResponse) -> None:
        """Takes the next piece."""
        self._chunks.setdefault(piece.file_name, []).append(piece.chunk)
        if piece.file_sha256:
            self._digests[piece.file_name] = piece.file_sha256

    def files(self) -> dict[str, bytes]:
        """Returns the files by name.

        Raises:
            RuntimeError: a file does not have the digest that came with it, or none came.
        """
        files = {name: b"".join(chunks) for name, chunks in self._chunks.items()}
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != self._digests.get(name):
                raise RuntimeError(f"{name} arrived damaged")
        return files
