"""Proto to core, the parts that several messages share: tables, sampling rules, request ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mlxrt_client.v1 import block_pb2, sampling_pb2

from mlxrt.core.model import Limits
from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.errors import field_invalid, limit_exceeded

REQUEST_ID_BYTES_MAX = 64
CLIENT_NAME_BYTES_MAX = 128
_PENALTY_MAX = 2.0


def decode_tables(
    tables: Sequence[block_pb2.BlockTable], path: str, check_count: Callable[[str, int], None]
) -> dict[int, list[int]]:
    """Block ids by group.

    Args:
        path: of the repeated field.
        check_count: raises where one list of ids, by its path, has too many.

    Raises:
        FIELD_INVALID: a group stands twice.
    """
    decoded: dict[int, list[int]] = {}
    for index, table in enumerate(tables):
        if table.group in decoded:
            raise field_invalid(f"{path}[{index}].group", f"group {table.group} stands twice")
        check_count(f"{path}[{index}].block_ids", len(table.block_ids))
        decoded[table.group] = table.block_ids[:]
    return decoded


def decode_request_id(request_id: str) -> str:
    """The request id; raises FIELD_INVALID unless it has 1 to 64 bytes."""
    if not 1 <= len(request_id.encode()) <= REQUEST_ID_BYTES_MAX:
        raise field_invalid("request_id", f"has 1 to {REQUEST_ID_BYTES_MAX} bytes")
    return request_id


def decode_client_name(name: str) -> str:
    """The name, safe to write to a terminal; raises FIELD_INVALID where it has too many bytes."""
    if len(name.encode()) > CLIENT_NAME_BYTES_MAX:
        raise field_invalid("client_name", f"has at most {CLIENT_NAME_BYTES_MAX} bytes")
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _number(value: float, path: str, low: float, high: float, *, above_low: bool = False) -> float:
    """The number; raises FIELD_INVALID unless it is finite and within its range."""
    inside = (low < value if above_low else low <= value) and value <= high
    if not math.isfinite(value) or not inside:
        bounds = f"{'more than' if above_low else 'at least'} {low:g}"
        if math.isfinite(high):
            bounds += f" and at most {high:g}"
        raise field_invalid(path, f"{value} is not a finite number of {bounds}")
    return value


def decode_sampling(
    message: sampling_pb2.SamplingParams, path: str, vocabulary_size: int, limits: Limits
) -> Sampling:
    """The rules with every default filled in.

    Raises:
        FIELD_INVALID: a number is not finite or out of its range, a token is unknown or stands
            twice, the mode is unknown.
        LIMIT_EXCEEDED: max_logit_bias, max_top_logprobs.
    """
    has = message.HasField
    if message.logprobs_mode not in sampling_pb2.LogprobsMode.values():
        raise field_invalid(f"{path}.logprobs_mode", f"{message.logprobs_mode} is no LogprobsMode")
    top_logprobs = message.top_logprobs if has("top_logprobs") else None
    if top_logprobs is not None and top_logprobs > limits.max_top_logprobs:
        raise limit_exceeded(
            "max_top_logprobs", limits.max_top_logprobs, top_logprobs, f"{path}.top_logprobs"
        )
    return Sampling(
        temperature=_number(message.temperature, f"{path}.temperature", 0, math.inf),
        top_k=message.top_k,
        top_p=_number(message.top_p, f"{path}.top_p", 0, 1, above_low=True)
        if has("top_p") else 1.0,
        min_p=_number(message.min_p, f"{path}.min_p", 0, 1),
        repetition_penalty=_number(
            message.repetition_penalty, f"{path}.repetition_penalty", 0, math.inf, above_low=True
        ) if has("repetition_penalty") else 1.0,
        presence_penalty=_number(
            message.presence_penalty, f"{path}.presence_penalty", -_PENALTY_MAX, _PENALTY_MAX
        ),
        frequency_penalty=_number(
            message.frequency_penalty, f"{path}.frequency_penalty", -_PENALTY_MAX, _PENALTY_MAX
        ),
        logit_bias=_decode_logit_bias(message, f"{path}.logit_bias", vocabulary_size, limits),
        top_logprobs=top_logprobs,
        processed_logprobs=message.logprobs_mode == sampling_pb2.LOGPROBS_MODE_PROCESSED,
    )  # fmt: skip


def _decode_logit_bias(
    message: sampling_pb2.SamplingParams, path: str, vocabulary_size: int, limits: Limits
) -> tuple[tuple[int, float], ...]:
    if len(message.logit_bias) > limits.max_logit_bias:
        raise limit_exceeded("max_logit_bias", limits.max_logit_bias, len(message.logit_bias), path)
    biases: dict[int, float] = {}
    for index, entry in enumerate(message.logit_bias):
        if entry.token_id >= vocabulary_size:
            raise field_invalid(
                f"{path}[{index}].token_id",
                f"{entry.token_id} is not below the vocabulary size {vocabulary_size}",
            )
        if entry.token_id in biases:
            raise field_invalid(f"{path}[{index}].token_id", f"{entry.token_id} stands twice")
        if not math.isfinite(entry.bias):
            raise field_invalid(f"{path}[{index}].bias", f"{entry.bias} is not finite")
        biases[entry.token_id] = entry.bias
    return tuple(biases.items())


def sampling_or_greedy(holder: object, path: str, vocabulary_size: int, limits: Limits) -> Sampling:
    """The rules of a NewSequence; greedy where it has none."""
    if not holder.HasField("sampling"):  # type: ignore[attr-defined]
        return GREEDY
    return decode_sampling(holder.sampling, f"{path}.sampling", vocabulary_size, limits)  # type: ignore[attr-defined]
