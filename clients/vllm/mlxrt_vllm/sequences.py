"""What vLLM's scheduler and the server both know of a sequence, and the blocks of the server."""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass

import numpy as np
from mlxrt_client import v1


class PromptLogprobs:
    """Of every prompt token but the first: itself, then the alternatives. n tokens, k alternatives.

    Attributes:
        token_ids, logprobs: [n, 1 + k], int32 and float32.
        ranks: [n] int32.
    """

    def __init__(self, prompt: Row[int], top_count: int) -> None:
        """Nothing is known but the tokens."""
        self.token_ids = np.zeros((len(prompt) - 1, 1 + top_count), dtype=np.int32)
        self.token_ids[:, 0] = prompt[1:]
        self.logprobs = np.zeros(self.token_ids.shape, dtype=np.float32)
        self.ranks = np.ones(len(prompt) - 1, dtype=np.int32)

    def add(self, piece: v1.PromptLogprobs) -> None:
        """Takes what a chunk of the prompt gave."""
        count, width = len(piece.logprobs), 1 + piece.top_count
        if not count:
            return
        rows = slice(piece.first_position - 1, piece.first_position - 1 + count)
        self.logprobs[rows, 0] = piece.logprobs
        self.ranks[rows] = piece.ranks
        self.token_ids[rows, 1:width] = np.reshape(piece.top_token_ids, (count, -1))
        self.logprobs[rows, 1:width] = np.reshape(piece.top_logprobs, (count, -1))


@dataclass(slots=True, eq=False)
class Sequence:
    """One request of vLLM's, as the server stands once every step sent has committed.

    Attributes:
        request_id: vLLM's.
        number: the server's id for it.
        tokens: known here: the prompt, then everything sampled and answered.
        known: number of tokens known to the server; more than `tokens` while a sample is on its
            way.
        position: of the next row.
        tables: vLLM's block ids by group, 0 for its null block.
        holes: leading entries of each table that the server has been told are holes.
        top_logprobs: alternatives asked for with each token; None for no logprobs.
        prompt_length: tokens of the prompt.
        prompt_logprobs: gathered while the prompt is computed; None where not asked for, and once
            given to vLLM.
        explicit: the server knows other tokens than vLLM: rows carry theirs until it has caught up.
    """

    request_id: str
    number: int
    tokens: list[int]
    known: int
    tables: list[list[int]]
    holes: list[int]
    top_logprobs: int | None
    prompt_length: int
    prompt_logprobs: PromptLogprobs | None = None
    position: int = 0
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """A group whose rows see the last `size` positions; `size` 0 for all."""

    size: int
    block_size: int

    def first_read(self, position: int) -> int:
        """First position that a row at `position` sees."""
        return max(0, position - self.size + 1) if self.size else 0

    def holes(self, position: int) -> int:
        """Leading blocks that no row at `position` or later sees."""
        return self.first_read(position) // self.block_size


@dataclass(slots=True)
class Pool:
    """The leased blocks: the server's id for each of vLLM's.

    Attributes:
        leased: by group, the server's ids; entry 0 is the hole, which is vLLM's null block.
    """

    leased: list[list[int]]

    def tables(self, block_ids: Row[Row[int]]) -> list[v1.BlockTable]:
        """vLLM's ids by group as the server's tables; groups without blocks are left out."""
        return [
            v1.BlockTable(group=group, block_ids=[self.leased[group][block] for block in ids])
            for group, ids in enumerate(block_ids)
            if ids
        ]
