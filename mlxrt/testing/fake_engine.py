"""An engine without MLX: the fake model behind the same seam as the real one.

A decode row, and an entry that samples or returns logits, reads every slot of its visible context
through the block tables that the plans' updates built, and nothing else; so a wrong table, a lost
copy or a block that somebody else wrote changes the token, and a slot never written makes the row
fail with NON_FINITE_LOGITS. Rows that do neither write their slots and read nothing. All rows of a
step are written before any is read, as in a layer of a real model.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxrt.core.model import Group, GroupKind, ModelFacts
from mlxrt.core.step import Phase, StepPlan, Timings
from mlxrt.engine.base import EngineDescription, EngineListener
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.fake_runner import FakeRunner

_BLOCK_BYTES_PER_POSITION = 8


@dataclass(slots=True)
class FakeFaults:
    """Failures to inject; may be changed while the engine runs.

    Attributes:
        fail_tickets: plans whose forward fails; nothing of them is written.
        fail_samplings: plans that defer their sampling, and whose sampling fails.
        lose_ticket: plan at which the device is lost: it and all later ones stay unanswered.
        nan_prompt_tokens: sequences whose prompt has one of these tokens give NaN logits in every
            row that is read.
        load_error: loading ends with this.
        heartbeat_age_s: what the engine says of its heartbeat; None for the truth.
    """

    fail_tickets: set[int] = field(default_factory=set)
    fail_samplings: set[int] = field(default_factory=set)
    lose_ticket: int | None = None
    nan_prompt_tokens: set[int] = field(default_factory=set)
    load_error: MlxrtError | None = None
    heartbeat_age_s: float | None = None


class FakeEngine:
    """The fake engine. With `threaded` plans run on a thread of its own, else inside `submit`.

    Args:
        vocabulary_size, block_size, windows, max_model_length: as FakeModel takes them.
        num_blocks: blocks of each group, block 0 included.
        window_num_blocks: blocks of each group with a window, where they shall be others.
        end_token_ids: as the model would declare them.
        threaded: run plans on a thread. Needed for `step_s` and `load_gate`.
        step_s: seconds that each step pretends to take.
        load_gate: loading waits until this is set.
        faults: failures to inject.

    Attributes:
        plans_run: plans run, cancelled ones left out.
        last_ticket: of the plan that came last; 0 before the first.
        tokenizer_folder: None, unless a test sets it.
    """

    depth = 2

    def __init__(
        self,
        *,
        vocabulary_size: int = 4096,
        block_size: int = 16,
        num_blocks: int = 4096,
        window_num_blocks: int | None = None,
        windows: Sequence[int] = (0,),
        max_model_length: int = 4096,
        end_token_ids: Sequence[int] = (),
        threaded: bool = False,
        step_s: float = 0.0,
        load_gate: threading.Event | None = None,
        faults: FakeFaults | None = None,
    ) -> None:
        if (step_s or load_gate) and not threaded:
            raise ValueError("a fake engine without a thread can't wait: pass threaded=True")
        counts = [(window_num_blocks or num_blocks) if window else num_blocks for window in windows]
        # The core lets no id past the group's own count.
        self.model = FakeModel(vocabulary_size, max_model_length, block_size, max(counts), windows)
        self.faults = faults or FakeFaults()
        self.plans_run = 0
        self.last_ticket = 0
        self.tokenizer_folder: Path | None = None
        self.facts = ModelFacts(
            model_name="fake",
            model_type="fake",
            vocabulary_size=vocabulary_size,
            max_model_length=max_model_length,
            kv_data_type="float32",
            block_size=block_size,
            groups=tuple(
                Group(
                    GroupKind.WINDOW if window else GroupKind.FULL,
                    (index,), window, counts[index], block_size * _BLOCK_BYTES_PER_POSITION,
                )
                for index, window in enumerate(windows)
            ),
            end_token_ids=tuple(end_token_ids),
            fingerprint="",
        )  # fmt: skip
        self._runner = FakeRunner(self.model, self.faults.nan_prompt_tokens)
        self._step_s = step_s
        self._load_gate = load_gate
        self._released = threading.Event()
        self._released.set()
        self._lost = False
        self._running_s: float | None = None
        self._listener: EngineListener | None = None
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        # A daemon, as MLX's engine thread is: one that hangs must not keep the process.
        self._thread = (
            threading.Thread(target=self._work, name="fake-engine", daemon=True)
            if threaded
            else None
        )

    def expected_token(self, tokens: Sequence[int]) -> int:
        """The greedy token after `tokens`: what a scheduler must get for them."""
        return self.model.expected_token(tokens)

    def hold(self) -> None:
        """Has the plans that begin from now on wait until `release`, each as if it ran; raises
        ValueError without a thread."""
        if self._thread is None:
            raise ValueError("a fake engine without a thread can't wait: pass threaded=True")
        self._released.clear()

    def release(self) -> None:
        """Ends what `hold` began."""
        self._released.set()

    def start(self, listener: EngineListener) -> None:
        """As Engine.start; without a thread `listener` hears that all is ready before this
        returns."""
        self._listener = listener
        if self._thread is not None:
            self._thread.start()
        else:
            self._load()

    def submit(self, plan: StepPlan) -> None:
        """As Engine.submit; without a thread the outcome is delivered before this returns."""
        if self._thread is not None:
            self._plans.put(plan)
        else:
            self._run(plan)

    def heartbeat_age_s(self) -> float:
        """As Engine.heartbeat_age_s: since the running plan began, 0 where none runs."""
        if self.faults.heartbeat_age_s is not None:
            return self.faults.heartbeat_age_s
        running_s = self._running_s
        return 0.0 if running_s is None else time.perf_counter() - running_s

    def close(self) -> None:
        """As Engine.close."""
        if self._thread is not None and self._thread.is_alive():
            if self._load_gate is not None:
                self._load_gate.set()
            self.release()
            self._plans.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join()

    def _work(self) -> None:
        self._load()
        while (plan := self._plans.get()) is not None:
            self._run(plan)

    def _load(self) -> None:
        assert self._listener is not None
        self._listener.on_progress(0.0, "making the fake model")
        if self._load_gate is not None:
            self._load_gate.wait()
        if self.faults.load_error is not None:
            self._lost = True
            self._listener.on_lost(self.faults.load_error)
            return
        self._listener.on_progress(1.0, "ready")
        self._listener.on_ready(self.facts, EngineDescription("fake", "fake", "", ""))

    def _run(self, plan: StepPlan) -> None:
        assert self._listener is not None
        if self._lost:
            return
        started = self._running_s = time.perf_counter()
        if self._step_s and not plan.cancelled:
            time.sleep(self._step_s)
        self._released.wait()
        self.last_ticket = plan.ticket
        if plan.ticket == self.faults.lose_ticket:
            self._lost = True
            self._listener.on_lost(MlxrtError(Reason.DEVICE_LOST, "the fake device is lost"))
            return
        failing = plan.ticket in self.faults.fail_tickets
        if plan.phase is Phase.SAMPLING:
            failing |= plan.ticket in self.faults.fail_samplings
        outcome = self._runner.run(plan, failing)
        self.plans_run += not plan.cancelled
        self._running_s = None
        outcome.timings = Timings(
            device_us=int((time.perf_counter() - started) * 1e6),
            begun_s=started,
            device_from_s=started,
        )
        self._listener.on_outcome(outcome)
