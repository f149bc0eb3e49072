"""What a simulated client can tell of an answer by itself: whether it fits what was sent."""

from __future__ import annotations

from collections.abc import Iterator

from mlxrt_client.v1 import step_pb2

from mlxrt.core.step import FAILED_TOKEN
from mlxrt.testing.simulation.view import Composed, Rows


def surprises(composed: Composed, answer: step_pb2.StepResponse) -> Iterator[str]:
    """V8, from outside: positions, drafts, masks and prompt logprobs of a committed step."""
    for run, token in zip(composed.decodes, answer.token_ids, strict=True):
        if token != FAILED_TOKEN and not _allows(run, 0, token):
            yield f"V8: token {token} is not allowed"
    results = answer.results[len(answer.results) - len(composed.items) :]
    for item, result in zip(composed.items, results, strict=True):
        if item is not None and not result.HasField("error"):
            yield from _of_item(item, result)


def _of_item(run: Rows, result: step_pb2.SequenceResult) -> Iterator[str]:
    tokens, accepted = list(result.token_ids), result.accepted_draft_count
    if len(tokens) != (1 + accepted if run.number else 0):
        yield f"V8: {len(tokens)} tokens with {accepted} accepted drafts"
    if tokens[:accepted] != run.drafts[:accepted] or accepted > len(run.drafts):
        yield "V8: what was accepted was no draft"
    if accepted < len(run.drafts) and tokens[-1:] == run.drafts[accepted : accepted + 1]:
        yield "V8: a draft that is right was not accepted"
    if result.position != run.end + accepted:
        yield f"V8: the sequence stands at {result.position}, not {run.end + accepted}"
    for row, token in enumerate(tokens):
        if not _allows(run, row, token):
            yield f"V8: token {token} is not allowed"
    if run.described is not None:
        yield from _of_prompt(*run.described, run.sequence.prompt_top, result)


def _of_prompt(
    first: int, count: int, top: int | None, result: step_pb2.SequenceResult
) -> Iterator[str]:
    prompt = result.prompt_logprobs
    if result.HasField("prompt_logprobs") != (count > 0):
        yield f"V8: prompt logprobs of {len(prompt.logprobs)} tokens, not {count}"
    elif count:
        lengths = [len(prompt.logprobs), len(prompt.ranks)]
        lengths += [len(prompt.top_token_ids), len(prompt.top_logprobs)]
        alternatives = top or 0
        if lengths != [count, count, count * alternatives, count * alternatives]:
            yield f"V8: prompt logprobs of {lengths}, not of {count} tokens"
        if (prompt.first_position, prompt.top_count) != (first, alternatives):
            yield f"V8: prompt logprobs from {prompt.first_position}, not {first}"


def _allows(run: Rows, row: int, token: int) -> bool:
    return not run.allowed or bool(run.allowed[row] >> token & 1)
