"""What the engine remembers of each sequence: tokens, block tables and sampling rules, in dense
arrays.

Every sequence has a line in arrays that all sequences share, so that a step's metadata are a few
vectorised look-ups. A token that is still on the device stands in the arrays as a negative code,
which names its place in the tokens of the step that samples it. Owned by the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxrt.core.step import Registration, TableUpdate
from mlxrt.engine.sampling import DrawLines, SamplingRow, is_plain_greedy

_CODE_STRIDE = 1 << 24
_INITIAL_LINES = 64
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
    """Tokens that a step replaced, kept until it has ended: `before[i]` stood at `(lines[i],
    positions[i])`.
    """

    handles: list[int]
    lines: IndexArray
    positions: IndexArray
    before: IntArray


class SequenceMirrors:
    """The sequences that the engine knows, in L lines; rows are tokens of a step.

    Attributes:
        tokens: [L, C] int32; negative where the token is still on the device.
        tables: by group, [L, B] int32.
        prompt_length: [L] int64: leading tokens that are the prompt's; those behind count as
            generated.
        sampling: by line; None for a plain greedy sequence.
        draws: by line, the rules of those that ask for no more than `DrawLines` holds.
        vocabulary_size: of the model.
    """

    def __init__(self, group_count: int, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.tokens: IntArray = np.zeros((_INITIAL_LINES, _INITIAL_COLUMNS), np.int32)
        self.tables: list[IntArray] = [
            np.zeros((_INITIAL_LINES, _INITIAL_BLOCKS), np.int32) for _ in range(group_count)
        ]
        self.prompt_length: IndexArray = np.zeros(_INITIAL_LINES, np.int64)
        self.sampling: list[SamplingRow | None] = [None] * _INITIAL_LINES
        self.draws = DrawLines(_INITIAL_LINES, vocabulary_size)
        self._line_of: dict[int, int] = {}
        self._free = list(range(_INITIAL_LINES - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._line_of)

    def __contains__(self, handle: int) -> bool:
        return handle in self._line_of

    def lines_of(self, handles: list[int]) -> IndexArray:
        """Lines of the sequences: [S]."""
        line_of = self._line_of
        return np.array([line_of[handle] for handle in handles], np.int64)

    def retire(self, handle: int) -> None:
        """Forgets a sequence; an unknown one is no error."""
        line = self._line_of.pop(handle, None)
        if line is not None:
            self.sampling[line] = None
            self.draws.clear(line)
            self._free.append(line)

    def register(self, registration: Registration) -> None:
        """Gives a sequence a line."""
        if not self._free:
            self._grow_lines()
        line = self._free.pop()
        self._line_of[registration.handle] = line
        prompt = np.asarray(registration.prompt, np.int32)
        self.ensure_columns(len(prompt) + 1)
        self.tokens[line, : len(prompt)] = prompt
        prompt_length = len(prompt) - registration.generated_count
        self.prompt_length[line] = prompt_length
        for table in self.tables:
            table[line] = 0
        rules = registration.sampling
        self.draws.set(line, rules, registration.seed)
        if not is_plain_greedy(rules):
            row = SamplingRow(rules, seed=registration.seed)
            if rules.penalised:
                row.prompt = np.unique(prompt[:prompt_length])
            self.sampling[line] = row

    def keep_prompt(self, line: int, count: int) -> None:
        """Ends what is left of a sequence's prompt at position `count`: given tokens stand there.

        Not undone: after a step that failed its sequences come back under other handles.
        """
        if count < self.prompt_length[line]:
            self.prompt_length[line] = count
            row = self.sampling[line]
            if row is not None and row.sampling.penalised:
                row.prompt = np.unique(self.tokens[line, :count])

    def update_table(self, update: TableUpdate) -> None:
        """Writes a change into a table; an unknown sequence is no error."""
        line = self._line_of.get(update.handle)
        if line is None:
            return
        last = update.first_index + len(update.block_ids)
        table = self.tables[update.group]
        if last > table.shape[1]:
            wider = max(last, 2 * table.shape[1])
            table = np.pad(table, ((0, 0), (0, wider - table.shape[1])))
            self.tables[update.group] = table
        table[line, update.first_index : last] = update.block_ids

    def overwrite(
        self, handles: list[int], lines: IndexArray, positions: IndexArray, tokens: IntArray
    ) -> Overwrite:
        """Puts `tokens` at `(lines, positions)`; `handles` are the owners, one per token. Returns
        what stood there.
        """
        before = self.tokens[lines, positions]
        self.tokens[lines, positions] = tokens
        return Overwrite(handles, lines, positions, before)

    def undo(self, overwrite: Overwrite) -> None:
        """Puts back what stood there, where the line still belongs to the same sequence."""
        line_of = self._line_of
        kept = np.array(
            [
                line_of.get(handle) == line
                for handle, line in zip(overwrite.handles, overwrite.lines.tolist(), strict=True)
            ],
            bool,
        )
        lines, positions = overwrite.lines[kept], overwrite.positions[kept]
        self.tokens[lines, positions] = overwrite.before[kept]

    def put(self, handle: int, position: int, tokens: list[int]) -> None:
        """Puts tokens of one sequence, from `position` on; an unknown sequence is no error."""
        line = self._line_of.get(handle)
        if line is not None:
            self.tokens[line, position : position + len(tokens)] = tokens

    def resolve(self, overwrite: Overwrite, codes: IntArray, values: IntArray) -> None:
        """Replaces the codes that `overwrite` put there, where they still stand, by the tokens."""
        lines, positions = overwrite.lines, overwrite.positions
        standing = self.tokens[lines, positions] == codes
        self.tokens[lines[standing], positions[standing]] = values[standing]

    def ensure_columns(self, count: int) -> None:
        """Makes room for `count` tokens per sequence."""
        width = self.tokens.shape[1]
        if count > width:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, max(count, 2 * width) - width)))

    def _grow_lines(self) -> None:
        count = len(self.sampling)
        self.tokens = np.pad(self.tokens, ((0, count), (0, 0)))
        self.tables = [np.pad(table, ((0, count), (0, 0))) for table in self.tables]
        self.prompt_length = np.pad(self.prompt_length, (0, count))
        self.sampling += [None] * count
        self.draws.grow(count)
        self._free += list(range(2 * count - 1, count - 1, -1))


def resolve_before(overwrite: Overwrite, parity: int, values: IntArray) -> None:
    """Replaces the codes of a step that was read, in what a later step would put back."""
    indices = -1 - overwrite.before.astype(np.int64) - parity * _CODE_STRIDE
    coded = (overwrite.before < 0) & (indices >= 0) & (indices < len(values))
    overwrite.before[coded] = values[indices[coded]]
