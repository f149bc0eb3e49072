"""What a step that committed must have read and answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from core_deferral import Deferral
from core_engine import ProvenanceEngine
from core_model import SessionModel

from mlxrt.core.core import Core
from mlxrt.core.step import FAILED_TOKEN, StepOutcome, StepPlan, StepReply
from mlxrt.errors import Reason

executed: Counter[str] = Counter()


class Commits:
    """The part of CoreMachine that judges replies."""

    core: Core
    engine: ProvenanceEngine
    now_ms: int
    sessions: dict[str, SessionModel]
    deferral: Deferral
    doomed: dict[int, Reason]
    renewed: Callable[[str], None]
    doom: Callable[[str, SessionModel, Reason], None]
    planned_ids: dict[int, list[int]]
    failed_lately: bool

    def committed(
        self, session: SessionModel, plan: StepPlan, failing: set[int], reply: StepReply
    ) -> None:
        """The rows read what they should have, and the reply says what came of it."""
        assert reply.error is None
        event = session.head()
        expected = session.expected()
        handles = [*plan.decode_handles, *(entry.handle for entry in plan.entries)]
        running = self.planned_ids[plan.ticket]
        assert len(handles) == len(running)
        contents = self.engine.contents[plan.ticket]
        by_id = dict(zip(running, handles, strict=True))
        failed = {i for i in running if i in expected and by_id[i] in failing}
        executed["sequence failed"] += len(failed)
        lost = (session.fall(failed) - failed) & expected.keys()
        executed["failed with another"] += len(lost)
        failed |= lost
        for sequence_id, handle in by_id.items():
            if sequence_id not in expected:
                executed["failed after it was handed out"] += 1
            elif sequence_id not in failed:
                rows = expected[sequence_id]
                assert None not in rows.contents, "a row read what was never computed"
                assert contents[handle] == rows.contents, "a row read something else"
                executed["rows"] += len(rows.contents)
                executed["read what another wrote in the same step"] += rows.borrowed > 0
        session.commit(failed)
        self.failed_lately = bool(failed)
        view = session.committed()
        good = {i for i in expected if i not in failed}
        assert list(reply.token_ids) == [
            expected[i].token if i in good else FAILED_TOKEN for i in event.step.decode_ids
        ]
        bad = [i for i in event.step.decode_ids if i not in good]
        assert [each.sequence_id for each in reply.details] == bad
        assert all(each.row.failure is not None for each in reply.details)
        for item, result in zip(event.step.items, reply.items, strict=True):
            assert result.sequence_id == item.sequence_id
            if item.sequence_id in good:
                assert result.row.token == expected[item.sequence_id].token
                assert result.position == expected[item.sequence_id].position
                assert len(result.row.accepted) == expected[item.sequence_id].accepted
                executed["accepted drafts"] += len(result.row.accepted)
                executed["rejected drafts"] += len(item.draft_tokens) - len(result.row.accepted)
            elif item.row_count or item.sequence_id in event.dead:
                assert result.row.failure is not None
                sequence = view.sequences.get(item.sequence_id)
                # A step behind may have released it and given its id to another, which failed too.
                is_it = item.sequence_id not in session.registered_behind()
                if sequence is not None and sequence.failed and is_it:
                    assert result.position == sequence.position
        executed["committed"] += 1

    def forward_ended(
        self, name: str, plan: StepPlan, failing: set[int], answer: StepOutcome
    ) -> None:
        """The step has no reply yet; a forward that failed dooms it and those behind."""
        assert self.core.finish(answer, self.now_ms) == []
        self.deferral.ended.add(plan.ticket)
        self.deferral.plans[plan.ticket] = plan, failing
        session = self.sessions.get(name)
        if session is not None:
            self.renewed(name)
        if answer.failure is not None and plan.ticket not in self.doomed:
            assert session is not None
            self.doomed[plan.ticket] = Reason.EXECUTION_FAILED
            self.doom(name, session, Reason.PREDECESSOR_FAILED)
            executed["forward failed"] += 1
