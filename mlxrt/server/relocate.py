"""Field paths of a StepRequest, as the core and the decoder write them, in terms of the message
that the client sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mlxrt.errors import MlxrtError, Violation

PathMap = Callable[[str], str]


def relocate(error: MlxrtError, path_map: PathMap) -> MlxrtError:
    """The same error with each field path mapped."""
    message = error.message
    for violation in error.violations:
        if message.startswith(f"{violation.field}:"):
            message = path_map(violation.field) + message.removeprefix(violation.field)
    metadata = dict(error.metadata)
    if "field" in metadata:
        metadata["field"] = path_map(metadata["field"])
    violations = [Violation(path_map(v.field), v.description) for v in error.violations]
    return MlxrtError(error.reason, message, violations, metadata, error.retry_delay_ms)


def in_execute(path: str) -> str:
    """StepRequest within ExecuteRequest."""
    return f"step.{path}"


def in_sampling(path: str) -> str:
    """DeferredSampling within ExecuteRequest and SampleStepRequest."""
    return f"sampling.{path}"


def in_prefill(sequence_chunks: Mapping[int, int]) -> PathMap:
    """StepRequest made of a PrefillRequest.

    Args:
        sequence_chunks: index of the chunk that each new sequence came from.
    """

    def path_map(path: str) -> str:
        if match := re.match(r"new_sequences\[(\d+)\](.*)", path):
            return f"chunks[{sequence_chunks[int(match[1])]}].sequence{match[2]}"
        path = re.sub(r"^(items(?=$|\[)|new_sequences$)", "chunks", path)
        path = re.sub(r"\.(tokens|registered)\b.*", ".row_count", path)
        return path.replace(".append.tables", ".append")

    return path_map


def in_decode(
    decode_indexes: Mapping[int, int],
    item_indexes: Mapping[int, int],
    appended_indexes: Mapping[int, int],
) -> PathMap:
    """StepRequest made of a DecodeRequest.

    Args:
        decode_indexes: index in sequence_ids of each decode_sequence_id.
        item_indexes: index in sequence_ids of each item.
        appended_indexes: index in appended of each item.
    """

    def path_map(path: str) -> str:
        if match := re.match(r"decode_sequence_ids\[(\d+)\]", path):
            return f"sequence_ids[{decode_indexes[int(match[1])]}]"
        if match := re.match(r"items\[(\d+)\]\.append\.tables(.*)", path):
            return f"appended[{appended_indexes[int(match[1])]}].append{match[2]}"
        if match := re.match(r"items\[(\d+)\]", path):
            return f"sequence_ids[{item_indexes[int(match[1])]}]"
        return re.sub(r"^(decode_sequence_ids|items)$", "sequence_ids", path)

    return path_map
