"""Nineteen bugs, each planted in a process of its own, for the simulator to find.

`python tests/simulation/planted_bugs.py NAME` plants one and runs seeds until one fails; without a
name it does so for all, each in a process, and prints what was found and how soon.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from mlxrt.core import commit, discard, step_calls, validate
from mlxrt.core.core import Core
from mlxrt.core.pool import Pool
from mlxrt.core.replies import ReplyStore
from mlxrt.core.requests import RequestStore
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.state import State
from mlxrt.core.ticket import Ticket
from mlxrt.testing import fake_runner
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.fake_runner import FakeRunner
from mlxrt.testing.simulation import silence_logs, simulate

SEEDS_MAX = 2_000
LIMIT_S = 500


def leak_on_cancel() -> None:
    """Blocks of a session that goes while a step runs never come back."""
    give_back = State.give_back

    def leaking(self: State, session: Any, blocks: Any, cause: str) -> None:
        give_back(self, session, blocks, cause)
        if session.inflight and cause in ("close", "expiry"):
            session.inflight[-1].quarantine.clear()

    State.give_back = leaking  # type: ignore[method-assign]


def double_free() -> None:
    """A block that is given back is free twice."""
    give_back = Pool.give_back

    def twice(self: Pool, blocks: Any) -> None:
        blocks = list(blocks)
        give_back(self, blocks + blocks[:1])

    Pool.give_back = twice  # type: ignore[method-assign]


def replay_runs_twice() -> None:
    """A repeated step is taken for a new one."""

    def again(state: Any, session: Any, step: Any) -> Any:
        step.step_number = session.next_step_number
        return step_calls.take(state, session, step)

    step_calls._repeat = again


def off_by_one_last_block() -> None:
    """The plain path goes one position past the last block."""
    arm = Sequence.arm

    def further(self: Sequence, bounds: Any) -> None:
        arm(self, bounds)
        if self.decode_limit:
            self.decode_limit += 1

    Sequence.arm = further  # type: ignore[method-assign]


def epoch_checked_early() -> None:
    """A take-over lets steps commit that were accepted before it."""

    def let_be(self: State, session: Any, reason: Any) -> None:
        for ticket in session.inflight:
            ticket.epoch = session.epoch

    State.discard_inflight = let_be  # type: ignore[method-assign]


def fill_not_reverted() -> None:
    """What a discarded step was to compute still counts as computed."""
    discard.undo = lambda tickets, bounds: None
    discard._damage = lambda tickets: set()


def quarantine_skipped() -> None:
    """Blocks are free while a step may still touch them."""

    def at_once(self: State, session: Any, blocks: Any, cause: str) -> None:
        for group, block_id in blocks:
            del session.blocks[group][block_id]
        self.pool.give_back(blocks)
        self.counters.blocks_freed[cause] += len(blocks)

    State.give_back = at_once  # type: ignore[method-assign]


def refused_call_renews() -> None:
    """A step that is refused renews the lease."""
    accept = Core.accept

    def renewing(self: Core, session_id: str, epoch: int, step: Any, now_ms: int) -> Any:
        session = self._state.sessions.get(session_id)
        if session is not None:
            session.renew(now_ms)
        return accept(self, session_id, epoch, step, now_ms)

    Core.accept = renewing  # type: ignore[method-assign]


def stored_reply_mutated() -> None:
    """A replayed answer has another position count than the first."""
    find = ReplyStore.find

    def changing(self: ReplyStore, step_number: int) -> Any:
        stored = find(self, step_number)
        if stored is not None:
            stored[1].bucket_row_count += 1
        return stored

    ReplyStore.find = changing  # type: ignore[method-assign]


def copy_after_write() -> None:
    """Blocks are copied after the step's rows are written."""
    copy_blocks, run = FakeModel.copy_blocks, FakeRunner.run
    late: list[Any] = []
    FakeModel.copy_blocks = (  # type: ignore[method-assign]
        lambda self, copies: late.append((self, copies))
    )

    def copying(self: FakeRunner, plan: Any, failing: bool) -> Any:
        outcome = run(self, plan, failing)
        while late:
            copy_blocks(*late.pop())
        return outcome

    FakeRunner.run = copying  # type: ignore[method-assign]


def stale_epoch_served() -> None:
    """Whoever owned a session once is served."""
    State.session = (  # type: ignore[method-assign]
        lambda self, session_id, epoch: self.known_session(session_id)
    )


def mate_fails_too() -> None:
    """With one sequence its neighbour fails."""
    fail = commit.fail_sequences

    def with_mate(failures: Any, ticket: Any, bounds: Any) -> None:
        fail(failures, ticket, bounds)
        for mate in ticket.decode_sequences:
            if mate.failure is None:
                fail({mate: next(iter(failures.values()))}, ticket, bounds)
                return

    commit.fail_sequences = with_mate


def request_id_ignored() -> None:
    """A repeated allocation leases again."""
    RequestStore.find = lambda self, request_id, content: None  # type: ignore[method-assign]


def masks_swapped() -> None:
    """Of two masks each goes to the other's sequence."""
    handles_of = Ticket.handles_of

    def swapped(self: Ticket, masks: Any) -> dict[int, bytes]:
        right = handles_of(self, masks)
        return dict(zip(right, reversed(right.values()), strict=True))

    Ticket.handles_of = swapped  # type: ignore[method-assign]


def sampled_without_masks() -> None:
    """A step that defers its sampling does not wait for its masks."""
    Ticket.can_go_on = property(lambda self: True)  # type: ignore[method-assign, assignment]


def waiting_keeps_the_lease() -> None:
    """A step that waits for masks keeps a session alive whose lease has ended."""
    Session.idle = property(lambda self: not self.inflight)  # type: ignore[method-assign, assignment]


def last_prompt_row_forgotten() -> None:
    """An item answers logprobs of one prompt token too few."""
    check_item_rows = validate.check_item_rows

    def forgetting(draft: Any, run: Any, item: Any, place: Any, bounds: Any) -> None:
        check_item_rows(draft, run, item, place, bounds)
        run.prompt_rows = max(0, run.prompt_rows - 1)

    validate.check_item_rows = forgetting


def wrong_draft_accepted() -> None:
    """The first draft is accepted whatever was drawn in its place."""
    verify = fake_runner.verify

    def lenient(draft_tokens: Any, rows: Any) -> Any:
        if draft_tokens and rows[0].failure is None:
            rows[0].token = draft_tokens[0]
        return verify(draft_tokens, rows)

    fake_runner.verify = lenient


def place_behind_drafts_forgotten() -> None:
    """A table change behind drafts says where the sequence stood before they were accepted."""
    commit._move_items = lambda tickets, sequence, accepted: None


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        leak_on_cancel, double_free, replay_runs_twice, off_by_one_last_block, epoch_checked_early,
        fill_not_reverted, quarantine_skipped, refused_call_renews, stored_reply_mutated,
        copy_after_write, stale_epoch_served, mate_fails_too, request_id_ignored,
        masks_swapped, sampled_without_masks, waiting_keeps_the_lease, last_prompt_row_forgotten,
        wrong_draft_accepted, place_behind_drafts_forgotten,
    )
}  # fmt: skip


def hunt(name: str) -> int:
    """Plants a bug and runs seeds; 0 where none found it, 1 where one did."""
    BUGS[name]()
    silence_logs()
    for seed in range(SEEDS_MAX):
        try:
            violations = simulate(seed).violations
        except Exception as error:
            violations = [repr(error)]
        if violations:
            print(f"seed {seed}: {violations[0].splitlines()[-1]}")
            return 1
    return 0


def find(name: str) -> tuple[bool, str, float]:
    """Whether the simulator finds a bug in time, in a process of its own; what it says; seconds."""
    started_s = time.monotonic()
    command = [sys.executable, __file__, name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return False, "not found in time", time.monotonic() - started_s
    found = run.returncode == 1 and run.stdout.startswith("seed ")
    return found, run.stdout.strip() or run.stderr[-300:], time.monotonic() - started_s


def main() -> int:
    """The command."""
    if len(sys.argv) == 2:
        return hunt(sys.argv[1])
    missed = 0
    for name in BUGS:
        found, words, took_s = find(name)
        missed += not found
        print(f"{name}: {'found' if found else 'MISSED'} in {took_s:.1f} s: {words}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
