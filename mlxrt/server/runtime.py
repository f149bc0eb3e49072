"""What exists once the model is loaded: the core and everything that works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from mlxrt.core.answers import ClosedSession
from mlxrt.core.core import Core
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.engine.base import Engine
from mlxrt.errors import MlxrtError
from mlxrt.server.dispatch import Dispatcher
from mlxrt.server.lifecycle import Lifecycle
from mlxrt.server.pipeline import StepPipeline
from mlxrt.server.step_watch import tally_steps
from mlxrt.telemetry.tallies import Tallies
from mlxrt.telemetry.tracing import StepTracer

_LOGIT_BYTES = 4
_REPLY_SLACK_BYTES = 32 * 1024
_RESULT_BYTES = 192
"""Most bytes of one sequence's part of a reply, a failure's message included, logprobs and logits
left out."""
_DRAFT_BYTES = 32
"""Most bytes of one accepted draft's part of a reply, its alternatives left out."""
_PROMPT_ROW_BYTES = 16
"""Most bytes of one row's part of prompt logprobs, its alternatives left out."""
_PROMPT_ALTERNATIVE_BYTES = 10
_MASK_BYTES = 64
"""Most bytes of a row of a mask beside its words."""
_ALTERNATIVE_BYTES = 12
"""Most bytes of one entry of top logprobs."""
_log = structlog.get_logger("mlxrt.server")


@dataclass(frozen=True, slots=True)
class Runtime:
    """The core, and what feeds it. Lives on the event loop's thread.

    Attributes:
        limits: those in force: the configured ones, lowered where model or message size ask for it.
    """

    facts: ModelFacts
    limits: Limits
    core: Core
    dispatcher: Dispatcher
    pipeline: StepPipeline
    now_ms: Callable[[], int]

    def expire(self, now_ms: int) -> list[ClosedSession]:
        """Ends the sessions whose lease has run out by `now_ms`; answers them."""
        return self._ended(self.core.expire(now_ms))

    def drain(self) -> list[ClosedSession]:
        """Ends every session that has no step in flight; answers them."""
        return self._ended(self.core.drain())

    def _ended(self, sessions: list[ClosedSession]) -> list[ClosedSession]:
        self.dispatcher.pump()
        return sessions

    @property
    def holds_nothing(self) -> bool:
        """Whether no step is in flight and no block leased."""
        free = self.core.free_blocks_by_group()
        return self.core.inflight_count() == 0 and all(
            count == group.block_count - 1
            for count, group in zip(free, self.facts.groups, strict=True)
        )


def limits_in_force(configured: Limits, facts: ModelFacts) -> Limits:
    """The configured limits, lowered to the model's length and to what the reply of one step
    carries: an accepted step whose reply is larger than a message could never be answered.
    """
    message_bytes = configured.max_message_bytes
    # Half for the sequences, half for their alternatives; logits take of what that leaves, and
    # prompts of what is left then.
    half_bytes = message_bytes // 2
    sequences = min(configured.max_step_sequences, half_bytes // _RESULT_BYTES)
    mask_bytes = -(-facts.vocabulary_size // 32) * 4 + _MASK_BYTES
    drafts = min(configured.max_step_drafts, half_bytes // 4 // _DRAFT_BYTES)
    alternatives = min(
        configured.max_top_logprobs,
        (half_bytes - drafts * _DRAFT_BYTES) // ((sequences + drafts) * _ALTERNATIVE_BYTES),
    )
    kept_bytes = sequences * _RESULT_BYTES + drafts * _DRAFT_BYTES
    kept_bytes += (sequences + drafts) * alternatives * _ALTERNATIVE_BYTES
    rest_bytes = message_bytes - max(kept_bytes, _REPLY_SLACK_BYTES)
    row_bytes = facts.vocabulary_size * _LOGIT_BYTES
    logits_rows = min(configured.max_logits_rows, rest_bytes // row_bytes)
    rest_bytes -= logits_rows * row_bytes
    prompt_row_bytes = _PROMPT_ROW_BYTES + alternatives * _PROMPT_ALTERNATIVE_BYTES
    prompt_rows = min(configured.max_prompt_logprobs_rows, rest_bytes // prompt_row_bytes)
    limits = replace(
        configured,
        max_model_length=min(configured.max_model_length, facts.max_model_length),
        max_step_sequences=sequences,
        max_step_drafts=drafts,
        max_mask_rows=min(configured.max_mask_rows, half_bytes // mask_bytes),
        max_prompt_logprobs_rows=prompt_rows,
        max_top_logprobs=alternatives,
        max_logits_rows=logits_rows,
    )
    if limits != configured:
        lowered = (
            "max_model_length", "max_step_sequences", "max_step_drafts", "max_mask_rows",
            "max_prompt_logprobs_rows", "max_top_logprobs", "max_logits_rows",
        )  # fmt: skip
        _log.info(
            "limits lowered for this model", **{name: getattr(limits, name) for name in lowered}
        )
    return limits


def build_runtime(
    facts: ModelFacts,
    configured: Limits,
    engine: Engine,
    lifecycle: Lifecycle,
    now_ms: Callable[[], int],
    on_defect: Callable[[MlxrtError], None],
    tallies: Tallies | None = None,
    tracer: StepTracer | None = None,
) -> Runtime:
    """Assembles the runtime of a model that `engine` has loaded; it counts in `tallies`."""
    tallies = tallies or Tallies()
    limits = limits_in_force(configured, facts)
    core = Core(facts, limits)
    dispatcher = Dispatcher(core, engine, now_ms, on_defect)
    dispatcher.observers.append(tally_steps(tallies))
    pipeline = StepPipeline(dispatcher, lifecycle, facts, limits, tracer)
    return Runtime(facts, limits, core, dispatcher, pipeline, now_ms)
