"""The server's answers as vLLM's ModelRunnerOutput."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from mlxrt_client import v1
from mlxrt_client.errors import SequenceFailedError, error_from_message
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput

from mlxrt_vllm.translation import Entry, Plan


@dataclass(slots=True)
class Answer:
    """What one request got.

    Attributes:
        tokens: sampled; none where its rows did not sample.
        logprobs: one per token where asked for.
        top: one per token where alternatives were asked for.
        prompt: logprobs of the prompt tokens that its rows predicted, where asked for.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[v1.TopLogprobs] = field(default_factory=list)
    prompt: v1.PromptLogprobs | None = None


class Answers:
    """The response to a plan's step, looked up by entry."""

    def __init__(self, plan: Plan, response: v1.StepResponse) -> None:
        """Takes the response apart."""
        self._response = response
        self._item_offset = len(response.results) - len(plan.step.items)
        extras = response.results[: self._item_offset]
        self._extras = {result.sequence_id: result for result in extras}

    def of(self, entry: Entry) -> Answer:
        """The entry's answer.

        Raises:
            SequenceFailedError: the sequence failed alone.
        """
        response = self._response
        if entry.item is not None:
            result = response.results[self._item_offset + entry.item]
            _raise_failure(result, entry)
            return Answer(
                list(result.token_ids),
                list(result.logprobs),
                list(result.top_logprobs),
                result.prompt_logprobs if result.HasField("prompt_logprobs") else None,
            )
        assert entry.column is not None
        extra = self._extras.get(entry.sequence.number)
        if extra is not None:
            _raise_failure(extra, entry)
        logprobs = [response.logprobs[entry.column]] if response.logprobs else []
        return Answer(
            [response.token_ids[entry.column]],
            logprobs,
            list(extra.top_logprobs) if extra is not None else [],
        )


def _raise_failure(result: v1.SequenceResult, entry: Entry) -> None:
    if result.HasField("error"):
        error = error_from_message(result.error)
        raise SequenceFailedError(
            error.reason,
            error.code,
            f"request {entry.sequence.request_id}: {error.message}",
            error.metadata,
        )


def runner_output(plan: Plan, answers: list[Answer]) -> ModelRunnerOutput:
    """Returns what vLLM's scheduler reads; `answers` are parallel to the plan's entries."""
    ids = [entry.sequence.request_id for entry in plan.entries]
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=[answer.tokens for answer in answers],
        logprobs=_logprobs(plan, answers),
        prompt_logprobs_dict=_prompt_logprobs(plan, answers),
    )


def _prompt_logprobs(plan: Plan, answers: list[Answer]) -> dict[str, LogprobsTensors | None]:
    """Of the requests whose prompt is complete: vLLM takes them whole, with the first token."""
    complete: dict[str, LogprobsTensors | None] = {}
    for entry, answer in zip(plan.entries, answers, strict=True):
        sequence = entry.sequence
        gathered = sequence.prompt_logprobs
        if gathered is None:
            continue
        if answer.prompt is not None:
            gathered.add(answer.prompt)
        if answer.tokens:
            complete[sequence.request_id] = LogprobsTensors(
                torch.from_numpy(gathered.token_ids),
                torch.from_numpy(gathered.logprobs),
                torch.from_numpy(gathered.ranks),
            )
            sequence.prompt_logprobs = None
    return complete


def _logprobs(plan: Plan, answers: list[Answer]) -> LogprobsLists | None:
    """The sampled token first, then the alternatives; rows that asked for fewer end in zeros."""
    asked = [entry.sequence.top_logprobs for entry in plan.entries]
    widths = [count for count in asked if count is not None]
    if not widths:
        return None
    row_count = sum(len(answer.tokens) for answer in answers)
    token_ids = np.zeros((row_count, 1 + max(widths)), dtype=np.int32)
    logprobs = np.zeros(token_ids.shape, dtype=np.float32)
    ranks = np.ones(row_count, dtype=np.int32)
    starts = []
    row = 0
    for count, answer in zip(asked, answers, strict=True):
        starts.append(row)
        for index, token in enumerate(answer.tokens):
            if count is not None:
                token_ids[row, 0], logprobs[row, 0] = token, answer.logprobs[index]
            if count:
                top = answer.top[index]
                ranks[row] = top.sampled_rank
                for column, alternative in enumerate(top.entries, start=1):
                    token_ids[row, column] = alternative.token_id
                    logprobs[row, column] = alternative.logprob
            row += 1
    return LogprobsLists(token_ids, logprobs, ranks, starts)
