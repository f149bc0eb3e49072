"""A client of the soak: steps one at a time, and at about one step in a hundred something goes
wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from random import Random
from typing import Any

import grpc
from mlxrt_client.errors import (
    InvalidRequestError,
    PreconditionError,
    SessionLostError,
    TransportError,
)
from mlxrt_client.v1 import StepRequest

from mlxrt.testing.checked_session import CheckedSession, expect
from mlxrt.testing.fault_proxy import FaultProxy
from mlxrt.testing.waiting import wait_until

_SHORT_S = 0.002
_HOLD_S = 0.3


class FaultyClient:
    """Drives one CheckedSession through a proxy of its own.

    Args:
        session: not open yet; its address is the proxy's.
        fault_rate: share of the steps at which a fault is met.

    Attributes:
        faults: how often each fault was met, by name.
        steps: steps answered.
    """

    def __init__(
        self, session: CheckedSession, proxy: FaultProxy, random: Random, fault_rate: float
    ) -> None:
        self.session = session
        self.faults: Counter[str] = Counter()
        self.steps = 0
        self._proxy = proxy
        self._random = random
        self._fault_rate = fault_rate
        self._kinds: dict[str, Callable[[StepRequest], bool]] = {
            "cut": self._cut,
            "deadline": self._deadline,
            "cancel": self._cancel,
            "twice": self._twice,
            "half open": self._half_open,
            "invalid": self._invalid,
            "take over": self._take_over,
            "abandon": self._abandon,
            "close": self._close_and_open,
        }

    @property
    def kinds(self) -> Set[str]:
        """The names of the faults that it may meet."""
        return self._kinds.keys()

    def run(self, stopped: threading.Event) -> None:
        """Steps until stopped, then closes the session."""
        self.session.open()
        while not stopped.is_set():
            try:
                if self._random.random() < self._fault_rate:
                    self._meet(self._random.choice(list(self._kinds)))
                else:
                    self.session.advance()
            except SessionLostError:
                self._starve()
            self.steps += 1
        try:
            self.session.close()
        except SessionLostError:
            self._starve()

    def _starve(self) -> None:
        """A machine that is busy may keep this process from calling for a whole lease; a lease that
        ends before is the server's fault."""
        silent_s = time.monotonic() - self.session.renewed_s
        expect(silent_s >= self.session.ttl_ms / 1000, f"a lease ended after {silent_s:.3f} s")
        self.faults["starved"] += 1
        self.session.open()

    def _meet(self, kind: str) -> None:
        """One step in which `kind` happens; then the same step again, unless it is answered."""
        self.faults[kind] += 1
        step = self.session.plan()
        if not self._kinds[kind](step):
            self.session.advance()

    def _settle_again(self, step: StepRequest) -> bool:
        """Sends the same step again, as often as it takes."""
        for _ in range(20):
            try:
                self.session.settle(step, self.session.send(step))
                return True
            except TransportError:
                self.session.retries += 1
                self.session.connect()
        raise TransportError("TRANSPORT", 14, "a step was not answered in 20 attempts")

    def _cut(self, step: StepRequest) -> bool:
        timer = threading.Timer(self._random.random() * 2 * _SHORT_S, self._proxy.cut)
        timer.start()
        answered = self._settle_again(step)
        timer.join()
        self.session.connect()  # a cut that came last would meet a call that nobody repeats
        return answered

    def _deadline(self, step: StepRequest) -> bool:
        try:
            response = self.session.send(step, self._random.random() * _SHORT_S + 1e-5)
        except TransportError:
            return self._settle_again(step)
        self.session.settle(step, response)
        return True

    def _cancel(self, step: StepRequest) -> bool:
        call = self.session.execution.Step.future(step, timeout=self.session.timeout_s)
        threading.Event().wait(self._random.random() * _SHORT_S)
        call.cancel()
        return self._settle_again(step)

    def _twice(self, step: StepRequest) -> bool:
        """Two calls at once; their answers are the same but for `replayed`."""
        calls = [
            self.session.execution.Step.future(step, timeout=self.session.timeout_s)
            for _ in range(2)
        ]
        try:
            answers = [call.result() for call in calls]
        except grpc.RpcError as failure:
            self.session.count(failure)
            return self._settle_again(step)
        expect(sum(answer.replayed for answer in answers) >= 1, "a step runs once")
        for answer in answers:
            answer.replayed = False
        expect(answers[0] == answers[1], "answers to one step are the same")
        self.session.settle(step, answers[0])
        return True

    def _half_open(self, step: StepRequest) -> bool:
        side = self._random.choice(("hold_up", "hold_down"))
        setattr(self._proxy, side, True)
        try:
            self.session.send(step, _HOLD_S)
        except TransportError:
            pass
        else:
            expect(False, "nothing comes through a connection that is held")
        setattr(self._proxy, side, False)
        self.session.connect()
        return self._settle_again(step)

    def _invalid(self, step: StepRequest) -> bool:
        """A refused step changes nothing: the right one with the same number is taken after."""
        wrong = StepRequest()
        wrong.CopyFrom(step)
        wrong.decode_sequence_ids.append(wrong.decode_sequence_ids[0] if step.items == [] else 0)
        try:
            self.session.send(wrong)
        except (InvalidRequestError, PreconditionError):
            return False
        except TransportError:
            return self._settle_again(step)
        except SessionLostError:  # `run` judges it
            raise
        except Exception as error:
            expect(getattr(error, "reason", "") == "SEQUENCE_UNKNOWN", f"refused as {error!r}")
            return False
        expect(False, "an invalid step is refused")
        return False

    def _take_over(self, step: StepRequest) -> bool:
        """Another owner takes over while the step is under way; the old one is fenced."""
        call = self.session.execution.Step.future(step, timeout=self.session.timeout_s)
        self.session.take_over()
        self._count_end(call)
        self.session.resync()
        wait_until(lambda: not self.session.state().inflight_step_numbers)
        self.session.resync()
        return False

    def _count_end(self, call: Any) -> None:
        failure = call.exception()
        if failure is not None:
            self.session.count(failure)

    def _abandon(self, step: StepRequest) -> bool:
        """As a client that is killed: the step under way, the session and its blocks stay."""
        del step
        self.session.connect()
        self.session.open()
        return False

    def _close_and_open(self, step: StepRequest) -> bool:
        """Closes the session while a step of it is under way."""
        call = self.session.execution.Step.future(step, timeout=self.session.timeout_s)
        self.session.call_close()
        self._count_end(call)
        self.session.open()
        return False
