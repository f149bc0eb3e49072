"""A client of the core that says what it wants in few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mlxrt.core.answers import Accepted, SequenceSnapshot, SessionRef
from mlxrt.core.core import Core
from mlxrt.core.model import Group, GroupKind, Limits, ModelFacts
from mlxrt.core.step import (
    Item,
    NewSequence,
    SampledRow,
    StepInput,
    StepOutcome,
    StepPlan,
    StepReply,
    TokenSource,
)
from mlxrt.errors import MlxrtError, Reason

FACTS = ModelFacts(
    model_name="test",
    model_type="test",
    vocabulary_size=100,
    max_model_length=32,
    kv_data_type="float32",
    block_size=4,
    groups=(Group(GroupKind.FULL, (0,), 0, 17, 1),),
    end_token_ids=(),
    fingerprint="",
)
WINDOWED = replace(
    FACTS, groups=(Group(GroupKind.FULL, (0,), 0, 17, 1), Group(GroupKind.WINDOW, (1,), 4, 17, 1))
)


class Client:
    """One session on a core; time stands still unless `now_ms` is moved."""

    def __init__(self, core: Core, name: str = "a") -> None:
        self.core = core
        self.name = name
        self.now_ms = 0
        opened = core.open_session(
            f"open-{name}", 1_000, name, session_id=name, session_seed=7, now_ms=0
        )
        self.ref = opened.session
        self.number = 1
        self._requests = 0

    def request_id(self) -> str:
        self._requests += 1
        return f"{self.name}-{self._requests}"

    def allocate(self, *counts: int) -> dict[int, list[int]]:
        wanted = {group: count for group, count in enumerate(counts) if count}
        return self.core.allocate_blocks(self.ref, self.request_id(), wanted, self.now_ms)

    def step(self, **parts: Any) -> StepInput:
        return StepInput(self.number, repr(sorted(parts.items())).encode(), **parts)

    def accept(self, **parts: Any) -> int:
        answer = self.core.accept(
            self.ref.session_id, self.ref.epoch, self.step(**parts), self.now_ms
        )
        assert isinstance(answer, Accepted)
        self.number += 1
        return answer.ticket

    def refuse(self, reason: Reason, field: str | None = None, **parts: Any) -> MlxrtError:
        """The step is refused for `reason`, naming `field`, and nothing changed."""
        step = self.step(**parts)
        return refused(
            self.core, reason, field,
            lambda: self.core.accept(self.ref.session_id, self.ref.epoch, step, self.now_ms),
        )  # fmt: skip

    def run(self, **parts: Any) -> StepReply:
        """Accepts a step and runs it to its end; each sampled token is 50."""
        ticket = self.accept(**parts)
        replies = finish_all(self.core, self.now_ms)
        return replies[ticket]

    def prefill(self, sequence_id: int, count: int, tables: dict[int, list[int]]) -> StepReply:
        """Registers `count` tokens, computes them and samples one."""
        return self.run(
            new_sequences=[NewSequence(sequence_id, range(1, count + 1), tables)],
            items=[rows(sequence_id, count, sample=True)],
        )

    def state(self, sequence_id: int) -> SequenceSnapshot:
        snapshot = self.core.get_session(
            self.ref, self.now_ms, include_tables=True, include_tokens=True
        )
        return next(s for s in snapshot.sequences if s.sequence_id == sequence_id)


def hand_out(client: Client) -> StepPlan:
    """The next plan, which there is."""
    plan = client.core.next_plan(0)
    assert plan is not None
    return plan


def new(sequence_id: int, count: int, blocks: list[int]) -> NewSequence:
    """A sequence whose prompt is 1, 2, ... in these blocks."""
    return NewSequence(sequence_id, range(1, count + 1), {0: blocks})


def rows(sequence_id: int, count: int = 1, start: int | None = None, **more: Any) -> Item:
    """An item whose rows take registered tokens."""
    source = more.pop("source", TokenSource.REGISTERED)
    return Item(sequence_id, count, start, source, **more)


def explicit(
    sequence_id: int, tokens: Sequence[int], start: int | None = None, **more: Any
) -> Item:
    """An item whose rows take these tokens."""
    return Item(sequence_id, len(tokens), start, TokenSource.EXPLICIT, tokens, **more)


def outcome(
    plan: StepPlan,
    token: int = 50,
    failing: Sequence[int] = (),
    failure: MlxrtError | None = None,
) -> StepOutcome:
    """What an engine answers that samples `token` everywhere; the handles in `failing` fail
    alone.
    """
    if failure is not None:
        return StepOutcome(plan.ticket, failure=failure)
    bad = MlxrtError(Reason.NON_FINITE_LOGITS, "NaN")
    return StepOutcome(
        plan.ticket,
        decode_tokens=[token] * len(plan.decode_handles),
        decode_details={
            i: SampledRow(failure=bad) for i, h in enumerate(plan.decode_handles) if h in failing
        },
        entry_rows=[
            SampledRow(failure=bad) if entry.handle in failing
            else SampledRow(token=token if entry.sample else None)
            for entry in plan.entries
        ],
    )  # fmt: skip


def finish_all(core: Core, now_ms: int = 0) -> dict[int, StepReply]:
    """Runs everything that is queued."""
    replies: dict[int, StepReply] = {}
    while (plan := core.next_plan(now_ms)) is not None:
        replies.update(core.finish(outcome(plan), now_ms))
    core.check_integrity()
    return replies


def refused(core: Core, reason: Reason, field: str | None, call: Any) -> MlxrtError:
    """`call` is refused for `reason`, naming `field`, and nothing changed."""
    before = core.digest()
    with pytest.raises(MlxrtError) as caught:
        call()
    error = caught.value
    assert error.reason is reason, error
    if field is not None:
        assert [violation.field for violation in error.violations] == [field]
    assert core.digest() == before
    core.check_integrity()
    return error


FAILURE = MlxrtError(Reason.EXECUTION_FAILED, "the forward failed")
LIMITS = Limits(max_inflight_steps=2, max_sessions=3, max_sequences=8)


def session_ref(client: Client, epoch: int) -> SessionRef:
    """The client's session under another epoch."""
    return SessionRef(client.ref.session_id, epoch)
