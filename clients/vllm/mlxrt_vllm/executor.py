"""vLLM's Executor that executes on an mlxrt server."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mlxrt_client import v1
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, DraftTokenIds, ModelRunnerOutput

from mlxrt_vllm import cache_config, limits
from mlxrt_vllm.connection import Connection
from mlxrt_vllm.drafting import propose
from mlxrt_vllm.masks import token_masks
from mlxrt_vllm.outputs import Answers, runner_output
from mlxrt_vllm.sequences import Window
from mlxrt_vllm.settings import Settings
from mlxrt_vllm.translation import Counts, Plan, Translator

logger = logging.getLogger("vllm.mlxrt")

CONTROL = frozenset({"reset_mm_cache", "reset_encoder_cache", "update_max_model_len"})
"""Calls of vLLM's that concern caches and buffers which only workers of its own have."""


@dataclass(slots=True)
class Flight:
    """A SchedulerOutput that was sent and not yet given back."""

    plan: Plan
    response: Future[v1.StepResponse]


class StepFuture(Future[ModelRunnerOutput]):
    """Reads the answer when it is asked for it, on the thread that asks: vLLM's engine's."""

    def __init__(self, collect: Callable[[], ModelRunnerOutput]) -> None:
        """`collect` waits for the answer."""
        super().__init__()
        self._collect = collect

    def result(self, timeout: float | None = None) -> ModelRunnerOutput:
        """The output; as long as it takes."""
        if not self.done():
            try:
                self.set_result(self._collect())
            except Exception as error:
                self.set_exception(error)
        return super().result(timeout)


class MlxrtExecutor(Executor):
    """Translates, sends and reads. vLLM's engine calls it from one thread.

    Attributes:
        counts: what was sent so far.
        inflight_max: most SchedulerOutputs that were in flight at once.
    """

    def _init_executor(self) -> None:
        self.connection = Connection(Settings.from_environment())
        try:
            limits.check(self.vllm_config, self.connection.server, self.connection.model)
        except BaseException:
            self.connection.close()
            raise
        limits.lower(self.vllm_config, self.connection.server.limits)
        self.counts = Counts()
        self.inflight_max = 0
        self._flights: deque[Flight] = deque()
        self._unsampled: deque[Flight] = deque()
        self._sampled: list[str] = []
        server = self.connection.server
        logger.info(
            "mlxrt %s at %s: %s on %s, instance %s",
            server.version,
            self.connection.settings.address,
            self.connection.model.model_name,
            server.device,
            server.instance_id,
        )

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """The server's groups."""
        return [cache_config.cache_specs(self.connection.model)]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Any; it is never used."""
        return [cache_config.LAYOUTS]

    def set_kv_cache_layout(self, layout_name: str, cp_kv_cache_interleave_size: int) -> None:
        """Does nothing."""

    def determine_available_memory(self) -> list[int]:
        """Bytes of the blocks that the server has for vLLM."""
        model = self.connection.model
        return [cache_config.block_count(model) * cache_config.block_bytes(model)]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """Leases the blocks that vLLM has planned with."""
        (config,) = kv_cache_configs
        available = cache_config.block_count(self.connection.model)
        if config.num_blocks > available:
            raise ValueError(
                f"--num-gpu-blocks-override {config.num_blocks}: the server's pool has {available}"
            )
        model = self.connection.model
        self._translator = Translator(
            self.connection.lease(config.num_blocks),
            [Window(group.window, model.block_size) for group in model.groups],
            self.model_config.logprobs_mode,
            counts=self.counts,
        )

    def compile_or_warm_up_model(self) -> None:
        """Does nothing: the server is warm before it serves."""

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """Sends the step. What it samples is read by `sample_tokens`.

        Returns:
            None, or a future of it: vLLM's sign that `sample_tokens` has the answer. Where nothing
            is scheduled, an empty output.
        """
        plan = self._translator.translate(scheduler_output)
        output = EMPTY_MODEL_RUNNER_OUTPUT if plan is None else None
        if plan is not None:
            flight = Flight(plan, self.connection.submit(plan.step))
            self._flights.append(flight)
            self._unsampled.append(flight)
            self.inflight_max = max(self.inflight_max, len(self._flights))
        if not non_block:
            return output
        future: Future[ModelRunnerOutput | None] = Future()
        future.set_result(output)
        return future

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """The output of the oldest SchedulerOutput that was not yet asked for.

        Where requests are constrained, their masks are sent now: the forward runs since
        `execute_model`.
        """
        flight = self._unsampled.popleft()
        if flight.plan.step.defer_sampling:
            size = self.connection.model.vocabulary_size
            masks = token_masks(flight.plan, grammar_output, size)
            self.connection.sample(flight.response, masks)
            self.counts.masks += len(masks)
        future = StepFuture(lambda: self._collect(flight))
        return future if non_block else future.result()

    def _collect(self, flight: Flight) -> ModelRunnerOutput:
        """Waits for the answer to the oldest flight and notes what it says."""
        response = self.connection.answer(flight.response)
        assert self._flights.popleft() is flight
        answers = Answers(flight.plan, response)
        found = [answers.of(entry) for entry in flight.plan.entries]
        self._sampled = []
        for entry, answer in zip(flight.plan.entries, found, strict=True):
            sequence = entry.sequence
            sequence.tokens.extend(answer.tokens)
            if entry.drafts:
                sequence.known += len(answer.tokens)
                sequence.position += len(answer.tokens) - 1
                self.counts.accepted_drafts += len(answer.tokens) - 1
            if answer.tokens:
                self._sampled.append(sequence.request_id)
        return runner_output(flight.plan, found)

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Drafts for the sequences of the last output, from their own text."""
        config = self.speculative_config
        if config is None:
            return None
        drafts = [
            propose(
                self._translator.sequences[request_id].tokens,
                config.prompt_lookup_min,
                config.prompt_lookup_max,
                config.num_speculative_tokens,
                self.model_config.max_model_len,
            )
            for request_id in self._sampled
        ]
        return DraftTokenIds(self._sampled, drafts)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Answers what vLLM asks of its workers where that means anything without them.

        Raises:
            NotImplementedError: for everything else, by name.
        """
        if method == "get_supported_tasks":
            return [("generate",)]
        if method in CONTROL:
            return [None]
        raise NotImplementedError(f"mlxrt has no workers in vLLM: {method} can't run")

    def execute_dummy_batch(self) -> None:
        """Does nothing: there are no peers to keep in step."""

    def check_health(self) -> None:
        """Raises ServerLostError where the session is known to be lost."""
        self.connection.check()

    def shutdown(self) -> None:
        """Gives everything on the server back."""
        if (connection := getattr(self, "connection", None)) is not None:
            logger.info("mlxrt: %s, %d in flight at most", self.counts, self.inflight_max)
            connection.close()

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """True: two steps may be in flight."""
        return True
