"""Which rows of a step go through the head, and what for.

Symbols: S sequences with rows, K selected rows (they sample, or answer logits).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxrt.core.step import Entry, StepPlan


@dataclass(slots=True)
class Selection:
    """The selected rows, in the order of the step's rows. A sequence that verifies drafts has 1 + n
    of them, every other one.

    Attributes:
        sequences: [K] index into S.
        backs: [K] how many rows of the sequence follow.
        sampled: the indices in K that sample.
        coded: those of them whose token a step that is built before it is read may take: all but
            those of sequences with drafts.
        logits: the indices in K that answer logits.
        of_entry: by entry of the plan, its first index in K or -1.
    """

    sequences: list[int]
    backs: list[int]
    sampled: list[int]
    coded: list[int]
    logits: list[int] = field(default_factory=list)
    of_entry: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, plan: StepPlan) -> Selection:
        """The rows of `plan`; the sequences are its decode handles, then its entries with rows."""
        count = len(plan.decode_handles)
        everyone = list(range(count))
        selection = cls(everyone, [0] * count, list(everyone), list(everyone))
        sequence = count
        for entry in plan.entries:
            if not (entry.count and (entry.sample or entry.return_logits)):
                selection.of_entry.append(-1)
            else:
                selection._add(entry, sequence)
            sequence += bool(entry.count)
        return selection

    def _add(self, entry: Entry, sequence: int) -> None:
        first, draft_count = len(self.sequences), len(entry.draft_tokens)
        indices = range(first, first + 1 + draft_count)
        self.of_entry.append(first)
        self.sequences += [sequence] * len(indices)
        self.backs += range(draft_count, -1, -1)
        if entry.sample:
            self.sampled += indices
            if not draft_count:
                self.coded.append(first)
        if entry.return_logits:
            self.logits.append(first)
