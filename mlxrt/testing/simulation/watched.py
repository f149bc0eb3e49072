"""The witness's book: sessions, sequences and steps by their answers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from mlxrt.core.answers import SessionSnapshot
from mlxrt.core.sampling import Sampling
from mlxrt.core.step import Mask, StepInput, StepReply
from mlxrt.errors import Reason


@dataclass(slots=True, eq=False)
class WatchedSequence:
    """A sequence by the commits alone.

    Attributes:
        tokens: the known ones.
        seed: None where the server chose one.
        prompt_left: of these, how many no given token has replaced.
        prompt_top: alternatives of its prompt logprobs; None where it asked for none.
        position: where it stands; None where a discarded step may have set it back.
    """

    tokens: list[int]
    sampling: Sampling
    seed: int | None
    prompt_count: int
    prompt_left: int
    prompt_top: int | None
    failed: bool = False
    position: int | None = 0

    @property
    def rules_known(self) -> bool:
        """Whether its tokens can be foretold."""
        return self.sampling.temperature == 0 or self.seed is not None


@dataclass(slots=True)
class WatchedStep:
    """An accepted step and the sequences that it meant; `failures` as the session had then.

    Attributes:
        masks: by sequence, once they are there.
        masked: whether they are, or none are waited for.
        forwarded: the forward of a step that defers its sampling has ended.
        doomed: it can't commit any more.
    """

    session_id: str
    epoch: int
    step: StepInput
    decodes: list[WatchedSequence]
    items: list[WatchedSequence]
    failures: int
    masks: dict[int, Mask]
    masked: bool
    forwarded: bool = False
    doomed: bool = False

    @property
    def waits_for_masks(self) -> bool:
        """Whether nothing but its client can bring it further."""
        return self.forwarded and not self.masked and not self.doomed

    def new_failures(self, reply: StepReply) -> Counter[Reason]:
        """Sequences that fail first in this reply, by reason."""
        details = {each.sequence_id: each.row for each in reply.details}
        rows = [
            (sequence, details.get(sequence_id))
            for sequence_id, sequence in zip(self.step.decode_ids, self.decodes, strict=True)
        ]
        rows += [(s, each.row) for s, each in zip(self.items, reply.items, strict=True)]
        return Counter(
            row.failure.reason
            for sequence, row in rows
            if row is not None and row.failure is not None and not sequence.failed
        )


@dataclass(slots=True)
class WatchedSession:
    """A session by its answers alone; `inflight` are tickets, `failures` counts sequences that
    failed by themselves."""

    epoch: int
    ttl_ms: int
    renewed_ms: int
    accepted: int = 0
    settled: int = 0
    failures: int = 0
    inflight: list[int] = field(default_factory=list)
    sequences: dict[int, WatchedSequence] = field(default_factory=dict)

    def differs(
        self, answer: SessionSnapshot, sequence_ids: Set[int] | None, *, with_tokens: bool
    ) -> Iterator[str]:
        """What in the answer to GetSession disagrees with the commits."""
        if answer.next_step_number != self.accepted + 1:
            yield "next step number"
        if list(answer.inflight_step_numbers) != list(range(self.settled + 1, self.accepted + 1)):
            yield "steps in flight"
        held = self.sequences.keys()
        asked = held if sequence_ids is None else held & sequence_ids
        if [each.sequence_id for each in answer.sequences] != sorted(asked):
            yield "sequences"
        for each in answer.sequences:
            known = self.sequences[each.sequence_id]
            if each.token_count != len(known.tokens):
                yield "token count"
            # Who fails with another one does so before the answer to its own step says it.
            fell = each.failure is not None and each.failure.reason is Reason.BLOCK_UNFILLED
            if (each.failure is not None) != known.failed and not (fell and self.inflight):
                yield "failure"
            if with_tokens and list(each.token_ids) != known.tokens:
                yield "tokens"
            settled = known.position is not None and each.failure is None and not self.inflight
            if settled and each.position != known.position:
                yield f"position {each.position}, not {known.position}"


def watch(session_id: str, session: WatchedSession, step: StepInput) -> WatchedStep:
    """Makes an accepted step's releases and registrations true; answers whom it means."""
    for sequence_id in step.releases:
        del session.sequences[sequence_id]
    for new in step.new_sequences:
        session.sequences[new.sequence_id] = WatchedSequence(
            list(new.prompt), new.sampling, new.seed, len(new.prompt), len(new.prompt),
            new.prompt_top_logprobs,
        )  # fmt: skip
    return WatchedStep(
        session_id,
        session.epoch,
        step,
        [session.sequences[i] for i in step.decode_ids],
        [session.sequences[item.sequence_id] for item in step.items],
        session.failures,
        {mask.sequence_id: mask for mask in step.masks},
        not step.deferred,
    )


def copied(blocks: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """The block ids, in lists of their own."""
    return {group: list(ids) for group, ids in blocks.items()}
