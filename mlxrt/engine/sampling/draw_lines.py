"""Rules 3 to 7 of sequences, in dense arrays with a line for each: a step's are a few look-ups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling.batch import SamplingBatch, is_drawn_alone, is_plain_greedy
from mlxrt.engine.sampling.rules import RULE_COUNT, UNIFORM, DrawRules, draw_numbers
from mlxrt.engine.sampling.uniform import origin, uniform_from

# What the sequence of a line asks: its largest logit, rules 3 to 7, or more than the arrays hold.
_GREEDY, _DRAWN, _MORE = range(3)


class DrawLines:
    """The rules of L lines; a line is plain greedy until it is set. Owned by the engine's thread.

    Attributes:
        gathered: batches that `gather` gave so far.
    """

    def __init__(self, line_count: int, vocabulary_size: int) -> None:
        self.gathered = 0
        self._vocabulary_size = vocabulary_size
        self._asked = np.full(line_count, _GREEDY, np.uint8)
        self._table = np.zeros((line_count, RULE_COUNT), np.float32)
        self._origins = np.zeros(line_count, np.uint64)

    def set(self, line: int, sampling: Sampling, seed: int) -> None:
        """Gives a line its rules, and the seed of its sequence, 0 to 2^64 - 1."""
        if is_plain_greedy(sampling):
            self._asked[line] = _GREEDY
        elif is_drawn_alone(sampling):
            self._asked[line] = _DRAWN
            self._table[line, :UNIFORM] = draw_numbers(sampling, self._vocabulary_size)
            self._origins[line] = origin(np.array([seed], np.uint64))[0]
        else:
            self._asked[line] = _MORE

    def clear(self, line: int) -> None:
        """Makes a line plain greedy."""
        self._asked[line] = _GREEDY

    def grow(self, count: int) -> None:
        """Adds `count` lines."""
        self._asked = np.pad(self._asked, (0, count), constant_values=_GREEDY)
        self._table = np.pad(self._table, ((0, count), (0, 0)))
        self._origins = np.pad(self._origins, (0, count))

    def gather(
        self,
        lines: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        sampled: Sequence[int],
    ) -> SamplingBatch | None:
        """Returns what `SamplingBatch.build` gives for rows of these lines, without masks; None
        where a row asks for more than rules 3 to 7.

        Args:
            lines: [K], at least one; several rows may be of one line.
            positions: [K], of the new tokens.
            sampled: indices in K of the rows that sample; the others ask for nothing.
        """
        asked = self._asked.take(lines)
        if len(sampled) < len(lines):
            silent = np.ones(len(lines), np.bool_)
            silent[sampled] = False
            asked[silent] = _GREEDY
        most = asked.max()
        if most == _MORE:
            return None
        self.gathered += 1
        if most == _GREEDY:
            return SamplingBatch.greedy(len(lines))
        (rows,) = asked.nonzero()
        if len(rows) < len(lines):
            lines, positions = lines[rows], positions[rows]
        table = self._table.take(lines, axis=0)
        table[:, UNIFORM] = uniform_from(self._origins.take(lines), positions)
        return SamplingBatch(len(asked), draws=DrawRules(rows.astype(np.int32), table))
