"""A simulated client: a scheduler that may crash, pause, be doubled and be taken over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mlxrt_client.v1 import execution_pb2, session_pb2
from mlxrt_client.window import StepWindow

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.errors import MlxrtError
from mlxrt.testing.simulation.calls import LOST, RETRIED
from mlxrt.testing.simulation.clock import EventQueue
from mlxrt.testing.simulation.composer import Composer
from mlxrt.testing.simulation.deferral import MaskSender
from mlxrt.testing.simulation.history import History
from mlxrt.testing.simulation.network import Network
from mlxrt.testing.simulation.view import View


class SimulatedClient(MaskSender):
    """One scheduler.

    Args:
        expected_token: the greedy token after given ones, for drafts.
        take_over: a session to take over, and nothing to open.

    Attributes:
        quiet: start nothing more.
        view: what it believes.
    """

    def __init__(
        self, name: str, queue: EventQueue, network: Network, random: Random,
        facts: ModelFacts, limits: Limits, history: History,
        expected_token: Callable[[Sequence[int]], int],
        take_over: session_pb2.SessionRef | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, queue, network, random, history)
        self.quiet = False
        self.composer = Composer(facts, limits, random, expected_token)
        self.masks = self.composer.masks
        self._facts = facts
        self._limits = limits
        self._reset()
        queue.after(random.randint(0, 5_000), self._wake, self._life)
        if take_over is not None:
            self._resume(take_over)

    def _reset(self) -> None:
        self.view = View(len(self._facts.groups))
        self._busy = self._synced = False
        self._forget_steps()

    @property
    def ref(self) -> session_pb2.SessionRef | None:
        """The session, where there is one that steps go to."""
        return self._ref if self._synced else None

    # ---- life ----

    def crash(self) -> None:
        """Forgets everything but, sometimes, who it was."""
        self.made["crash"] += 1
        ref = self._ref if self._random.random() < 0.5 else None
        self._lose()
        if ref is not None and not self.quiet:
            self._resume(ref)

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._watch is not None:
            self._watch.cancel()
        self._life += 1
        self._ref = None
        self._reset()
        self._queue.after(self._random.randint(1_000, 50_000), self._wake, self._life)

    def _wake(self, life: int) -> None:
        if life != self._life:
            return
        if not self.quiet or self._ref is not None:
            pause_us = self._random.randint(200, 4_000)
            if not self.quiet and self._random.random() < 0.002:
                self.made["pause"] += 1
                pause_us = self._random.randint(500_000, 6_000_000)
            self._queue.after(pause_us, self._wake, life)
        if self.quiet:
            self._leave()
        elif self._ref is None:
            self._open()
        elif self._synced:
            self._act()
        elif self._window is not None and not len(self._window) and not self._busy:
            self._sync()

    def _leave(self) -> None:
        """Closes politely or just goes."""
        if self._ref is not None and self._synced and self._random.random() < 0.5:
            request = session_pb2.CloseSessionRequest(session=self._ref)
            self._network.call("CloseSession", request.SerializeToString(), lambda outcome: None)
        self._life += 1
        self._ref = None

    # ---- sessions ----

    def _open(self) -> None:
        if self._busy:
            return
        self.made["open"] += 1

        def opened(data: bytes) -> None:
            answer = session_pb2.OpenSessionResponse.FromString(data)
            self._begin(answer.session, 1)

        request = session_pb2.OpenSessionRequest(
            request_id=self._request_id(), client_name=self.name,
            lease_ttl_ms=self._random.choice((0, 1_000, 2_000)),
        )  # fmt: skip
        self._call("OpenSession", request, opened)

    def _resume(self, ref: session_pb2.SessionRef) -> None:
        self.made["take over"] += 1

        def resumed(data: bytes) -> None:
            answer = session_pb2.ResumeSessionResponse.FromString(data)
            self._begin(answer.session, answer.next_step_number)
            self._synced = False

        request = session_pb2.ResumeSessionRequest(request_id=self._request_id(), session=ref)
        self._call("ResumeSession", request, resumed)

    def _begin(self, ref: session_pb2.SessionRef, next_number: int) -> None:
        self._ref = ref
        self._window = StepWindow(ref, next_number)
        self._synced = True

    def _sync(self) -> None:
        """Asks the server where everything stands."""
        self.made["sync"] += 1
        request = session_pb2.GetSessionRequest(
            session=self._ref, include_tables=True, include_tokens=True
        )

        def told(data: bytes) -> None:
            state = session_pb2.GetSessionResponse.FromString(data)
            if state.inflight_step_numbers or self._window is None:
                return
            self.view.rebuild(state, self._random.randint(8, 30))
            self._window.align(state.next_step_number)
            self._synced = True

        self._call("GetSession", request, told)

    # ---- what an owner does ----

    def _act(self) -> None:
        leased = sum(map(len, self.view.leased))
        total = sum(group.block_count - 1 for group in self._facts.groups)
        roll = self._random.random()
        if not self._busy and ((leased < total // 4 and roll < 0.5) or roll < 0.01):
            self._allocate()
        elif not self._busy and roll < 0.05:
            self._random.choice(
                (self._free_blocks, self._free_sequences, self._renew, self._close)
            )()
        else:
            self._step()

    def _allocate(self) -> None:
        most = self._facts.groups[0].block_count // 3
        counts = {g: self._random.randint(1, most) for g in range(len(self._facts.groups))}
        request = execution_pb2.AllocateBlocksRequest(
            session=self._ref, request_id=self._request_id(),
            counts=[{"group": g, "count": n} for g, n in counts.items()],
        )  # fmt: skip

        def leased(data: bytes) -> None:
            for table in execution_pb2.AllocateBlocksResponse.FromString(data).blocks:
                self.view.leased[table.group].update(dict.fromkeys(table.block_ids))

        self._call("AllocateBlocks", request, leased, self._refused)

    def _refused(self, error: MlxrtError) -> None:
        if error.reason.name in LOST:
            self._lose()
        elif error.reason not in RETRIED:
            self._synced = False

    def _free_blocks(self) -> None:
        free = self.view.free()
        request = execution_pb2.FreeBlocksRequest(session=self._ref, request_id=self._request_id())
        for group, ids in enumerate(free):
            some = [block for block in ids if self._random.random() < 0.3]
            if some:
                request.blocks.add(group=group, block_ids=some)
                for block in some:
                    del self.view.leased[group][block]
        self.made["free blocks"] += 1
        self._call("FreeBlocks", request, lambda data: None)

    def _free_sequences(self) -> None:
        if not self.view.sequences:
            return
        sequence = self._random.choice(list(self.view.sequences.values()))
        del self.view.sequences[sequence.sequence_id]
        request = execution_pb2.FreeSequencesRequest(
            session=self._ref, request_id=self._request_id(), sequence_ids=[sequence.sequence_id],
            free_blocks=self._random.random() < 0.5,
        )  # fmt: skip
        self.made["free sequences"] += 1

        def freed(data: bytes) -> None:
            for table in execution_pb2.FreeSequencesResponse.FromString(data).freed_blocks:
                for block in table.block_ids:
                    self.view.leased[table.group].pop(block, None)

        self._call("FreeSequences", request, freed)

    def _renew(self) -> None:
        request = session_pb2.RenewSessionRequest(session=self._ref)
        self._call("RenewSession", request, lambda data: None)

    def _close(self) -> None:
        if self._random.random() < 0.9:
            return
        self.made["close"] += 1
        request = session_pb2.CloseSessionRequest(session=self._ref)
        self._call("CloseSession", request, lambda data: self._lose(), lambda error: self._lose())

    def _step(self) -> None:
        if self._window is None or not self._may_send(self._limits.max_inflight_steps):
            return
        composed = self.composer.compose(self.view, alone=not len(self._window))
        if composed is None:
            return
        sent = self._send(composed)
        if composed.step.defer_sampling:
            self._defer(sent, composed.masks)
