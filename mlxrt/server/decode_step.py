"""StepRequest to StepInput. Counts are held to the limits before any object is built for what they
count.

What a step means for blocks, positions and sequences is the core's to judge; here only what its
form can't carry: features not served, enums and presence, duplicates that a mapping would hide,
sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mlxrt_client.v1 import sequence_pb2, step_pb2, tensor_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import Item, Mask, NewSequence, StepInput, TokenSource
from mlxrt.errors import field_invalid, limit_exceeded, unsupported
from mlxrt.server.decode_fields import decode_tables, sampling_or_greedy

_DIGEST_BYTES = 16
_WORD_BITS = 32
_WORD_BYTES = 4
_SOURCES = {
    None: None,
    "registered": TokenSource.REGISTERED,
    "explicit": TokenSource.EXPLICIT,
    "last_sampled": TokenSource.LAST_SAMPLED,
}


@dataclass(frozen=True, slots=True)
class StepCall:
    """A decoded step and who sends it."""

    session_id: str
    epoch: int
    step: StepInput


@dataclass(frozen=True, slots=True)
class SamplingCall:
    """Decoded masks of a step that deferred its sampling, and who sends them."""

    session_id: str
    epoch: int
    step_number: int
    masks: list[Mask]
    digest: bytes


class StepDecoder:
    """Decodes steps for one model under the declared limits."""

    def __init__(self, facts: ModelFacts, limits: Limits) -> None:
        self._facts = facts
        self._limits = limits
        self._length_max = min(facts.max_model_length, limits.max_model_length)

    def decode(self, message: step_pb2.StepRequest) -> StepCall:
        """The step; empties `message`'s session on the way.

        Raises:
            FEATURE_UNSUPPORTED, FIELD_INVALID, LIMIT_EXCEEDED: nothing has happened.
        """
        session_id, epoch = message.session.session_id, message.session.epoch
        message.ClearField("session")
        decode_ids = message.decode_sequence_ids
        items = message.items
        plain = not (
            items or message.new_sequences or message.release_sequence_ids or message.block_copies
            or message.masks or message.defer_sampling
        )  # fmt: skip
        self._check_sequences(len(decode_ids) + len(items), len(decode_ids))
        if not plain:
            self._check_counts(message)
        step = StepInput(
            step_number=message.step_number,
            digest=hashlib.blake2b(
                message.SerializeToString(deterministic=True), digest_size=_DIGEST_BYTES
            ).digest(),
            decode_ids=decode_ids[:],
        )
        if not plain:
            step.releases = message.release_sequence_ids[:]
            step.copies = [
                (c.group, c.source_block_id, c.destination_block_id) for c in message.block_copies
            ]
            step.new_sequences = [
                self._new_sequence(s, f"new_sequences[{i}]")
                for i, s in enumerate(message.new_sequences)
            ]
            step.items = [self._item(m, f"items[{i}]") for i, m in enumerate(items)]
            step.masks = self._masks(message.masks)
            step.deferred = message.defer_sampling
        return StepCall(session_id, epoch, step)

    def decode_sampling(self, message: step_pb2.DeferredSampling) -> SamplingCall:
        """Masks for a step that deferred its sampling; empties `message`'s session on the way.

        Raises:
            FIELD_INVALID, LIMIT_EXCEEDED: nothing has happened.
        """
        session_id, epoch = message.session.session_id, message.session.epoch
        message.ClearField("session")
        masks = self._masks(message.masks)
        digest = hashlib.blake2b(
            message.SerializeToString(deterministic=True), digest_size=_DIGEST_BYTES
        ).digest()
        return SamplingCall(session_id, epoch, message.step_number, masks, digest)

    def _masks(self, messages: Sequence[step_pb2.TokenMask]) -> list[Mask]:
        limits, rows, masks = self._limits, 0, []
        words = -(-self._facts.vocabulary_size // _WORD_BITS)
        for index, message in enumerate(messages):
            path, tensor = f"masks[{index}].allowed", message.allowed
            if tensor.data_type != tensor_pb2.DATA_TYPE_INT32:
                raise field_invalid(f"{path}.data_type", "must be DATA_TYPE_INT32")
            if len(tensor.shape) != 2 or tensor.shape[1] != words or tensor.shape[0] < 1:
                raise field_invalid(f"{path}.shape", f"must be [rows, {words}]")
            count = tensor.shape[0]
            rows += count
            if rows > limits.max_mask_rows:
                raise limit_exceeded("max_mask_rows", limits.max_mask_rows, rows, "masks")
            data_bytes = count * words * _WORD_BYTES
            if len(tensor.data) != data_bytes:
                raise field_invalid(f"{path}.data", f"must have {data_bytes} bytes")
            masks.append(Mask(message.sequence_id, count, tensor.data))
        return masks

    def _check_sequences(self, count: int, decode_count: int) -> None:
        limits = self._limits
        if count > limits.max_step_sequences:
            path = "decode_sequence_ids" if decode_count > limits.max_step_sequences else "items"
            raise limit_exceeded("max_step_sequences", limits.max_step_sequences, count, path)
        if decode_count > limits.max_step_rows:
            raise limit_exceeded(
                "max_step_rows", limits.max_step_rows, decode_count, "decode_sequence_ids"
            )

    def _check_counts(self, message: step_pb2.StepRequest) -> None:
        limits = self._limits
        for limit, path, count in (
            ("max_step_copies", "block_copies", len(message.block_copies)),
            ("max_sequences", "new_sequences", len(message.new_sequences)),
            ("max_sequences", "release_sequence_ids", len(message.release_sequence_ids)),
        ):
            maximum = getattr(limits, limit)
            if count > maximum:
                raise limit_exceeded(limit, maximum, count, path)
        rows, drafts, logits_rows = len(message.decode_sequence_ids), 0, 0
        for index, item in enumerate(message.items):
            drafts += len(item.draft_token_ids)
            if drafts > limits.max_step_drafts:
                raise limit_exceeded(
                    "max_step_drafts", limits.max_step_drafts, drafts,
                    f"items[{index}].draft_token_ids",
                )  # fmt: skip
            rows += item.row_count + len(item.draft_token_ids)
            if rows > limits.max_step_rows:
                raise limit_exceeded(
                    "max_step_rows", limits.max_step_rows, rows, f"items[{index}].row_count"
                )
            logits_rows += item.return_logits
            if logits_rows > limits.max_logits_rows:
                raise limit_exceeded(
                    "max_logits_rows", limits.max_logits_rows, logits_rows,
                    f"items[{index}].return_logits",
                )  # fmt: skip

    def _check_entries(self, path: str, count: int) -> None:
        """Refuses a table that is longer than any sequence."""
        size = self._facts.block_size
        if count > -(-self._length_max // size):
            raise limit_exceeded("max_model_length", self._length_max, count * size, path)

    def _new_sequence(self, message: sequence_pb2.NewSequence, path: str) -> NewSequence:
        for name in ("adapter_id", "state_slot_id"):
            if getattr(message, name):
                raise unsupported(f"{path}.{name}")
        if message.HasField("input_embeddings"):
            raise unsupported(f"{path}.input_embeddings")
        prompt_top = None
        if message.HasField("prompt_top_logprobs"):
            prompt_top, maximum = message.prompt_top_logprobs, self._limits.max_top_logprobs
            if prompt_top > maximum:
                raise limit_exceeded(
                    "max_top_logprobs", maximum, prompt_top, f"{path}.prompt_top_logprobs"
                )
        if len(message.prompt_token_ids) > self._length_max:
            raise limit_exceeded(
                "max_model_length", self._length_max, len(message.prompt_token_ids),
                f"{path}.prompt_token_ids",
            )  # fmt: skip
        sampling = sampling_or_greedy(message, path, self._facts.vocabulary_size, self._limits)
        seeded = message.HasField("sampling") and message.sampling.HasField("seed")
        return NewSequence(
            sequence_id=message.sequence_id,
            prompt=message.prompt_token_ids[:],
            tables=decode_tables(message.tables, f"{path}.tables", self._check_entries),
            sampling=sampling,
            seed=message.sampling.seed if seeded else None,
            prompt_top_logprobs=prompt_top,
        )

    def _item(self, message: step_pb2.StepItem, path: str) -> Item:
        if message.return_hidden_state:
            raise unsupported(f"{path}.return_hidden_state")
        source = _SOURCES[message.WhichOneof("tokens")]
        if (source is None) != (message.row_count == 0):
            raise field_invalid(f"{path}.tokens", "set if and only if there are rows")
        item = Item(message.sequence_id, message.row_count, source=source, sample=message.sample)
        item.return_logits = message.return_logits
        if message.draft_token_ids:
            item.draft_tokens = message.draft_token_ids[:]
        if message.HasField("start_position"):
            item.start_position = message.start_position
        if source is TokenSource.EXPLICIT:
            tokens = message.explicit.token_ids
            if len(tokens) > self._limits.max_step_rows:
                raise limit_exceeded(
                    "max_step_rows", self._limits.max_step_rows, len(tokens),
                    f"{path}.explicit.token_ids",
                )  # fmt: skip
            item.token_ids = tokens[:]
        change = message.WhichOneof("table_change")
        if change == "append":
            item.append = decode_tables(
                message.append.tables, f"{path}.append.tables", self._check_entries
            )
        elif change == "replace":
            item.replace = decode_tables(
                message.replace.tables, f"{path}.replace.tables", self._check_entries
            )
        if message.leading_holes:
            item.leading_holes = {}
            for index, holes in enumerate(message.leading_holes):
                if holes.group in item.leading_holes:
                    raise field_invalid(
                        f"{path}.leading_holes[{index}].group", f"group {holes.group} stands twice"
                    )
                item.leading_holes[holes.group] = holes.count
        return item
