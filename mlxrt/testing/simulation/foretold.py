"""What the fake model gives after given tokens, under the rules of a sequence and a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Mask, PromptLogprobs
from mlxrt.testing.fake_model import LOGIT_STEP, FakeModel
from mlxrt.testing.fake_sampling import sample_row
from mlxrt.testing.simulation.watched import WatchedSequence

_TOLERANCE = 1e-6


class Foretold:
    """Tokens and logprobs, of a model that is asked for nothing but its hash."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self._size = model.vocabulary_size

    @cached_property
    def _log_total(self) -> float:
        return math.log(sum(math.exp(-LOGIT_STEP * rank) for rank in range(self._size)))

    def after(
        self, sequence: WatchedSequence, tokens: Sequence[int], mask: Mask | None, row: int
    ) -> int | None:
        """The token after `tokens` of a sequence whose `rules_known`; None where the mask's row
        allows nothing."""
        greedy = self._model.expected_token(tokens)
        allowed = self._all if mask is None else allowed_bits(mask, row) & self._all
        if not allowed:
            return None
        if sequence.sampling == GREEDY:
            # Logits fall from the greedy token upwards, then from 0.
            above = allowed >> greedy
            return greedy + _lowest(above) if above else _lowest(allowed)
        booleans = None
        if mask is not None:
            octets = np.frombuffer(allowed.to_bytes(-(-self._size // 8), "little"), np.uint8)
            booleans = np.unpackbits(octets, bitorder="little")[: self._size].astype(np.bool_)
        prompt = tokens[: sequence.prompt_left]
        generated = tokens[sequence.prompt_left :]
        logits = self._model.logits(greedy)
        seed = sequence.seed or 0
        return sample_row(logits, sequence.sampling, seed, prompt, generated, booleans).token

    def differs(self, prompt: PromptLogprobs, tokens: Sequence[int]) -> bool:
        """Whether logprobs of prompt tokens are others than the model's."""
        size, top = self._size, prompt.top_count
        ranks: list[int] = []
        top_ids: list[int] = []
        for position in range(prompt.first_position, prompt.first_position + len(prompt.ranks)):
            greedy = self._model.expected_token(tokens[:position])
            ranks.append(1 + (tokens[position] - greedy) % size)
            top_ids += [(greedy + rank) % size for rank in range(top)]
        wanted = [self._logprob(rank) for rank in ranks]
        wanted += [self._logprob(rank + 1) for _ in ranks for rank in range(top)]
        got = [*prompt.logprobs, *prompt.top_logprobs]
        return (
            list(prompt.ranks) != ranks
            or list(prompt.top_ids) != top_ids
            or len(got) != len(wanted)
            or any(abs(a - b) > _TOLERANCE for a, b in zip(got, wanted, strict=True))
        )

    @cached_property
    def _all(self) -> int:
        return (1 << self._size) - 1

    def _logprob(self, rank: int) -> float:
        return -LOGIT_STEP * (rank - 1) - self._log_total


def allowed_bits(mask: Mask, row: int) -> int:
    """The tokens that a row of the mask allows, as bits."""
    row_bytes = len(mask.allowed) // mask.row_count
    return int.from_bytes(mask.allowed[row * row_bytes : (row + 1) * row_bytes], "little")


def is_allowed(mask: Mask, row: int, token: int) -> bool:
    """Whether a row of the mask allows the token."""
    return bool(allowed_bits(mask, row) >> token & 1)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
