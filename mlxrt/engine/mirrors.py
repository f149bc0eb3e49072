"""What the engine remembers of each sequence: tokens, block tables and sampling rules, in dense
arrays.

Every sequence has a row in arrays that all sequences share, so that a step's metadata are a few
vectorised look-ups. A token that is still on the device stands in the arrays as a negative code,
which names its place in the tokens of the step that samples it. Owned by the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxrt.core.step import Registration, TableUpdate
from mlxrt.engine.sampling import SamplingRow, is_plain_greedy

_CODE_STRIDE = 1 << 24
_INITIAL_ROWS = 64
_INITIAL_COLUMNS = 256
_INITIAL_BLOCKS = 16

IntArray = NDArray[np.int32]
IndexArray = NDArray[np.int64]


def encode_pending(indices: IndexArray, parity: int) -> IntArray:
    """Codes of tokens that a step samples at `indices`; steps that are unread at the same time
    differ in `parity`.
    """
    return (-1 - indices - parity * _CODE_STRIDE).astype(np.int32)


def decode_pending(codes: IntArray, parity: int) -> IntArray:
    """The indices in `codes`, all of a step of this parity."""
    return (-1 - codes - parity * _CODE_STRIDE).astype(np.int32)


@dataclass(slots=True)
class Overwrite:
    """Tokens that a step replaced, kept until it has ended: `before[i]` stood at `(rows[i],
    positions[i])`.
    """

    handles: list[int]
    rows: IndexArray
    positions: IndexArray
    before: IntArray


class SequenceMirrors:
    """The sequences that the engine knows.

    Attributes:
        tokens: [R, C] int32; negative where the token is still on the device.
        tables: by group, [R, B] int32.
        prompt_length: [R] int64.
        sampling: by row; None for a plain greedy sequence.
    """

    def __init__(self, group_count: int) -> None:
        self.tokens: IntArray = np.zeros((_INITIAL_ROWS, _INITIAL_COLUMNS), np.int32)
        self.tables: list[IntArray] = [
            np.zeros((_INITIAL_ROWS, _INITIAL_BLOCKS), np.int32) for _ in range(group_count)
        ]
        self.prompt_length: IndexArray = np.zeros(_INITIAL_ROWS, np.int64)
        self.sampling: list[SamplingRow | None] = [None] * _INITIAL_ROWS
        self._row_of: dict[int, int] = {}
        self._free = list(range(_INITIAL_ROWS - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, handle: int) -> bool:
        return handle in self._row_of

    def rows_of(self, handles: list[int]) -> IndexArray:
        """Rows of the sequences: [S]."""
        row_of = self._row_of
        return np.array([row_of[handle] for handle in handles], np.int64)

    def retire(self, handle: int) -> None:
        """Forgets a sequence; an unknown one is no error."""
        row = self._row_of.pop(handle, None)
        if row is not None:
            self.sampling[row] = None
            self._free.append(row)

    def register(self, registration: Registration) -> None:
        """Gives a sequence a row."""
        if not self._free:
            self._grow_rows()
        row = self._free.pop()
        self._row_of[registration.handle] = row
        prompt = np.asarray(registration.prompt, np.int32)
        self.ensure_columns(len(prompt) + 1)
        self.tokens[row, : len(prompt)] = prompt
        prompt_length = len(prompt) - registration.generated_count
        self.prompt_length[row] = prompt_length
        for table in self.tables:
            table[row] = 0
        rules = registration.sampling
        if not is_plain_greedy(rules):
            self.sampling[row] = SamplingRow(rules, seed=registration.seed)
            if rules.penalised:
                distinct = np.unique(prompt[:prompt_length])
                self.sampling[row].prompt = distinct  # type: ignore[union-attr]

    def update_table(self, update: TableUpdate) -> None:
        """Writes a change into a table; an unknown sequence is no error."""
        row = self._row_of.get(update.handle)
        if row is None:
            return
        last = update.first_index + len(update.block_ids)
        table = self.tables[update.group]
        if last > table.shape[1]:
            wider = max(last, 2 * table.shape[1])
            table = np.pad(table, ((0, 0), (0, wider - table.shape[1])))
            self.tables[update.group] = table
        table[row, update.first_index : last] = update.block_ids

    def overwrite(
        self, handles: list[int], rows: IndexArray, positions: IndexArray, tokens: IntArray
    ) -> Overwrite:
        """Puts `tokens` at `(rows, positions)`; `handles` are the owners, one per token. Returns
        what stood there.
        """
        before = self.tokens[rows, positions]
        self.tokens[rows, positions] = tokens
        return Overwrite(handles, rows, positions, before)

    def undo(self, overwrite: Overwrite) -> None:
        """Puts back what stood there, where the row still belongs to the same sequence."""
        row_of = self._row_of
        kept = np.array(
            [
                row_of.get(handle) == row
                for handle, row in zip(overwrite.handles, overwrite.rows.tolist(), strict=True)
            ],
            bool,
        )
        rows, positions = overwrite.rows[kept], overwrite.positions[kept]
        self.tokens[rows, positions] = overwrite.before[kept]

    def resolve(self, overwrite: Overwrite, codes: IntArray, values: IntArray) -> None:
        """Replaces the codes that `overwrite` put there, where they still stand, by the tokens."""
        rows, positions = overwrite.rows, overwrite.positions
        standing = self.tokens[rows, positions] == codes
        self.tokens[rows[standing], positions[standing]] = values[standing]

    def ensure_columns(self, count: int) -> None:
        """Makes room for `count` tokens per sequence."""
        width = self.tokens.shape[1]
        if count > width:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, max(count, 2 * width) - width)))

    def _grow_rows(self) -> None:
        count = len(self.sampling)
        self.tokens = np.pad(self.tokens, ((0, count), (0, 0)))
        self.tables = [np.pad(table, ((0, count), (0, 0))) for table in self.tables]
        self.prompt_length = np.pad(self.prompt_length, (0, count))
        self.sampling += [None] * count
        self._free += list(range(2 * count - 1, count - 1, -1))


def resolve_before(overwrite: Overwrite, parity: int, values: IntArray) -> None:
    """Replaces the codes of a step that was read, in what a later step would put back."""
    indices = -1 - overwrite.before.astype(np.int64) - parity * _CODE_STRIDE
    coded = (overwrite.before < 0) & (indices >= 0) & (indices < len(values))
    overwrite.before[coded] = values[indices[coded]]
