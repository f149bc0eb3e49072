"""The MLX engine: one thread that owns everything of MLX's, and one that reads launched steps.

Other threads hand plans in and hear outcomes; they touch no array. Importing this module imports no
mlx: the engine's thread does, after the environment that MLX reads has been prepared.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlxrt.core.step import StepOutcome, StepPlan
from mlxrt.engine.base import EngineListener
from mlxrt.engine.counters import EngineCounters
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.environment import prepare_environment
from mlxrt.engine.reader import Reader
from mlxrt.errors import MlxrtError, Reason
from mlxrt.exit_code import ExitCode

if TYPE_CHECKING:
    from mlxrt.engine.assembly import Assembled
    from mlxrt.engine.flight import Flight
    from mlxrt.engine.memory_plan import MemoryPlan
    from mlxrt.engine.runner import StepRunner

_IDLE_BEAT_S = 0.5


class MlxEngine:
    """Implements `mlxrt.engine.Engine` on MLX.

    Attributes:
        depth: plans that may be submitted and unanswered at once.
    """

    depth = 2

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._inbox: deque[StepPlan] = deque()
        # Guards the inbox, `_closing` and what the reader has to say; no MLX work is done under it.
        self._changed = threading.Condition()
        self._closing = False
        self._beat_s = time.monotonic()
        self._listener: EngineListener | None = None
        self._assembled: Assembled | None = None
        self._read_failed = False
        self._reader_defect: Exception | None = None
        self._final_counters = EngineCounters()
        self._plan: MemoryPlan | None = None
        self._path_reason = ""
        self._folder: Path | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mlxrt-engine", daemon=True)

    def start(self, listener: EngineListener) -> None:
        """As `Engine.start`. Once."""
        self._listener = listener
        self._beat()
        self._thread.start()

    def submit(self, plan: StepPlan) -> None:
        """As `Engine.submit`."""
        with self._changed:
            self._inbox.append(plan)
            self._changed.notify_all()

    def heartbeat_age_s(self) -> float:
        """As `Engine.heartbeat_age_s`; grows while the thread waits for the device."""
        return time.monotonic() - self._beat_s

    def close(self) -> None:
        """As `Engine.close`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._ended.wait()

    def counters(self) -> EngineCounters:
        """What was done since the engine was ready; any thread."""
        assembled = self._assembled
        if assembled is None:
            return self._final_counters
        import mlx.core as mx

        counts, sampler = assembled.path.counts, assembled.sampler
        return replace(
            assembled.runner.counters,
            attend_native=counts.native,
            attend_gather=counts.gather,
            fused_layers=counts.fused,
            traces=assembled.runner.trace_count,
            sample_native=sampler.steps if sampler.name == "native" else 0,
            sample_plain=sampler.steps if sampler.name == "plain" else 0,
            peak_bytes=mx.get_peak_memory(),
        )

    def memory_bytes(self) -> dict[str, int]:
        """Bytes by kind: what MLX holds, and what was planned; empty before the engine is ready.
        Any thread.
        """
        plan = self._plan
        if plan is None:
            return {}
        import mlx.core as mx

        return {
            "active": mx.get_active_memory(),
            "cache": mx.get_cache_memory(),
            "peak": mx.get_peak_memory(),
            "limit": plan.limit_bytes,
            "kv_pool": plan.pool_bytes,
            "weights": plan.weight_bytes,
        }

    @property
    def memory_plan(self) -> MemoryPlan | None:
        """What goes where in memory; None before the engine is ready."""
        return self._plan

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer's files lie; None before the engine is ready."""
        return self._folder

    @property
    def path_reason(self) -> str:
        """Why `auto` did not take the native attention path; empty where it did, or was not asked
        to.
        """
        return self._path_reason

    def _beat(self) -> None:
        self._beat_s = time.monotonic()

    def _main(self) -> None:
        """The engine's thread."""
        assert self._listener is not None
        listener = self._listener
        try:
            self._load_and_run(listener)
        except Exception as error:
            listener.on_lost(_lost(error))
        finally:
            self._release()
            self._ended.set()
        # MLX keeps compiled Python functions per thread and drops them, with the GIL, when the
        # thread ends. While the interpreter shuts down that aborts the process, and no join waits
        # for it: so the thread, which holds nothing any more, does not end before its process.
        threading.Event().wait()

    def _load_and_run(self, listener: EngineListener) -> None:
        assembled = self._load(listener)
        if assembled is not None:
            self._run(assembled, listener)

    def _load(self, listener: EngineListener) -> Assembled | None:
        """Loads the model; None where that failed, which the listener has then heard."""
        try:
            prepare_environment()
            from mlxrt.engine.assembly import assemble

            self._assembled = assemble(self._config, self._progress)
        except Exception as error:
            listener.on_lost(_load_failure(error))
            return None
        self._plan, self._path_reason = self._assembled.plan, self._assembled.path_reason
        self._folder = self._assembled.folder
        return self._assembled

    def _run(self, assembled: Assembled, listener: EngineListener) -> None:
        """Serves until closed."""
        runner = assembled.runner
        reader = Reader(partial(self._was_read, runner))
        runner.read_elsewhere(reader.take)
        reader.start()
        try:
            listener.on_ready(assembled.facts, assembled.description)
            self._serve(runner)
        finally:
            reader.stop()

    def _release(self) -> None:
        """Frees what the device holds."""
        self._final_counters = self.counters()
        if self._assembled is not None:
            import mlx.core as mx

            self._assembled = None
            mx.clear_cache()

    def _progress(self, fraction: float, activity: str) -> None:
        self._beat()
        assert self._listener is not None
        self._listener.on_progress(fraction, activity)

    def _serve(self, runner: StepRunner) -> None:
        """Runs plans until closed and empty."""
        while True:
            self._beat()
            plan = self._next_plan(runner)
            if plan is not None:
                runner.begin(plan, self._answer)
            elif self._closing and not runner.flights:
                return
            runner.finish_read(self._answer, recover=True)

    def _next_plan(self, runner: StepRunner) -> StepPlan | None:
        """Waits for a plan; None once closed and empty, and where a step could not be read."""
        with self._changed:
            while not self._inbox:
                if self._reader_defect is not None:
                    raise self._reader_defect
                if self._read_failed or (self._closing and not runner.flights):
                    self._read_failed = False
                    return None
                self._changed.wait(_IDLE_BEAT_S)
                if not runner.flights:
                    self._beat()
            return self._inbox.popleft()

    def _was_read(self, runner: StepRunner, flight: Flight) -> None:
        """Answers what the reader has read; on its thread."""
        defect = None
        try:
            runner.finish_read(self._answer, recover=False)
        except Exception as error:
            defect = error
        with self._changed:
            self._read_failed |= flight.read_error is not None
            self._reader_defect = self._reader_defect or defect
            self._changed.notify_all()

    def _answer(self, outcome: StepOutcome) -> None:
        self._beat()
        assert self._listener is not None
        self._listener.on_outcome(outcome)


def _load_failure(error: Exception) -> MlxrtError:
    """What the listener hears of a load that failed; metadata `exit_code` is the code that the
    server exits with.
    """
    from mlxrt.engine.memory_plan import DoesNotFitError

    code = ExitCode.MODEL
    if isinstance(error, DoesNotFitError):
        code = ExitCode.MEMORY
    elif isinstance(error, ImportError):
        code = ExitCode.ABI
    loss = _lost(error)
    loss.metadata = {"exit_code": str(int(code))}
    return loss


def _lost(error: Exception) -> MlxrtError:
    """What the listener hears of a device that was lost."""
    lost = MlxrtError(Reason.DEVICE_LOST, f"{type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost
