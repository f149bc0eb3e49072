"""Rows that answer logprobs of the prompt: which they are, and what was read of them.

Symbols: P such rows, T rows of the step, k the most alternatives that one of them asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxrt.core.step import Entry, PromptLogprobs, SampledRow
from mlxrt.engine.mirrors import IndexArray, IntArray
from mlxrt.engine.sampling.sampled import non_finite

CHUNK = 64
"""Rows that go through the head at once; their logits are then dropped."""


@dataclass(slots=True)
class PromptRows:
    """The P rows of a step.

    Attributes:
        rows: [P] index into T.
        lines, positions: [P] where the mirrors hold the tokens described.
        depth: k.
        tokens: [P] int32, the tokens; taken from the mirrors before the graph is built.
    """

    rows: IntArray
    lines: IndexArray
    positions: IndexArray
    depth: int
    tokens: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))

    @classmethod
    def of(
        cls, entries: list[Entry], lines: IndexArray, first_rows: IndexArray
    ) -> PromptRows | None:
        """The rows of `entries`; None without any.

        Args:
            lines, first_rows: by entry, its line in the mirrors and its first row.
        """
        if not any(entry.prompt_rows for entry in entries):
            return None
        counts = np.array([entry.prompt_rows for entry in entries], np.int64)
        starts = np.array([entry.start for entry in entries], np.int64)
        owner = np.repeat(np.arange(len(entries)), counts)
        offsets = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        depth = max(entry.prompt_top for entry in entries if entry.prompt_rows)
        return cls(
            (first_rows[owner] + offsets).astype(np.int32),
            lines[owner],
            starts[owner] + offsets + 1,
            depth,
        )


@dataclass(frozen=True, slots=True)
class PromptValues:
    """What was read of the P rows.

    Attributes:
        logprobs, ranks: [P].
        top_ids, top_logprobs: [P, k]; k may be 0.
    """

    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def give_to(self, entries: list[Entry], rows: list[SampledRow]) -> None:
        """Adds each entry's part to its row, or fails it where the model gave no finite logits."""
        start = 0
        for index, entry in enumerate(entries):
            if not entry.prompt_rows:
                continue
            part = slice(start, start + entry.prompt_rows)
            start = part.stop
            if rows[index].failure is not None:
                continue
            if np.isnan(self.logprobs[part]).any():
                rows[index] = SampledRow(failure=non_finite())
                continue
            count = min(entry.prompt_top, self.top_ids.shape[1])
            rows[index].prompt = PromptLogprobs(
                entry.start + 1,
                self.logprobs[part].tolist(),
                self.ranks[part].tolist(),
                count,
                self.top_ids[part, :count].ravel().tolist(),
                self.top_logprobs[part, :count].ravel().tolist(),
            )
