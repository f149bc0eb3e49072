"""Token streams of the corpus, and the windows that training and evaluation take from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mlxrt.bundled.corpus import SourceFile
from mlxrt.bundled.tokenizer_training import END_OF_TEXT, token_id

Tokens = npt.NDArray[np.uint16]
"""A stream of token ids, `[num_tokens]`; every file ends with the end-of-text token."""

STREAMS = ("library", "tests", "held_out_library", "held_out_tests")
"""The streams that training needs, each saved as one array of this name."""


@dataclass(frozen=True)
class Windows:
    """Draws training windows that begin at a line's start, from library and tests in proportion.

    Attributes:
        library: the stream of library files.
        tests: the stream of the test suite's files.
        line_end_id: the token id of a line end.
        length: tokens a window predicts; it holds one more.
        library_share: the probability that a window comes from `library`, in [0, 1].
    """

    library: Tokens
    tests: Tokens
    line_end_id: int
    length: int
    library_share: float

    def draw(self, count: int, random: np.random.Generator) -> npt.NDArray[np.int32]:
        """Returns windows `[count, length + 1]`."""
        from_library = int(random.binomial(count, self.library_share))
        parts = [
            self._of(stream, number, random)
            for stream, number in ((self.library, from_library), (self.tests, count - from_library))
            if number
        ]
        return np.concatenate(parts).astype(np.int32)

    def _of(self, stream: Tokens, count: int, random: np.random.Generator) -> Tokens:
        starts = self._line_start(stream, random.integers(0, len(stream), count))
        offsets = starts[:, None] + np.arange(self.length + 1)
        drawn: Tokens = stream[offsets % len(stream)]
        return drawn

    def _line_start(
        self, stream: Tokens, positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Moves each position to just after the next line end within a window's length."""
        reach = np.arange(256)
        ahead = stream[(positions[:, None] + reach) % len(stream)] == self.line_end_id
        return np.where(ahead.any(axis=1), positions + ahead.argmax(axis=1) + 1, positions)


def encode(tokenizer: Tokenizer, files: list[SourceFile]) -> Tokens:
    """Returns the files' tokens in order, each file followed by end of text."""
    end = token_id(tokenizer, END_OF_TEXT)
    pieces: list[int] = []
    for file in files:
        pieces += tokenizer.encode(file.text).ids
        pieces.append(end)
    return np.asarray(pieces, dtype=np.uint16)


def save_streams(folder: Path, streams: dict[str, Tokens]) -> None:
    """Writes the streams as one compressed archive."""
    arrays: dict[str, Any] = {name: streams[name] for name in STREAMS}
    np.savez_compressed(folder / "tokens.npz", **arrays)


def load_streams(folder: Path) -> dict[str, Tokens]:
    """Reads what `save_streams` wrote."""
    with np.load(folder / "tokens.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in STREAMS}


def consecutive(stream: Tokens, length: int, batch: int) -> Iterator[npt.NDArray[np.int32]]:
    """Yields the stream as batches `[<= batch, length + 1]`; their targets do not overlap.

    The rest that fills no window is left out.
    """
    count = (len(stream) - 1) // length
    starts = np.arange(count) * length
    for first in range(0, count, batch):
        offsets = starts[first : first + batch, None] + np.arange(length + 1)
        yield stream[offsets].astype(np.int32)
