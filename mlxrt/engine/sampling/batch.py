"""What the rows of one step ask of sampling, gathered on the host into a few small arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling.rules import (
    RULE_COUNT,
    UNIFORM,
    Biases,
    DrawRules,
    LogprobGroup,
    Masks,
    Penalties,
    draw_numbers,
)
from mlxrt.engine.sampling.uniform import uniform

_WORD_BITS = 32
_NO_TOKENS: npt.NDArray[np.int32] = np.zeros(0, np.int32)


@dataclass(slots=True)
class SamplingRow:
    """One row that samples. May be kept per sequence and changed in place between steps.

    Attributes:
        sampling: the rules.
        seed: of the sequence, 0 to 2^64 - 1; read where `temperature` is more than 0.
        position: number of tokens of the sequence before the new one.
        prompt: [n] int32 or uint32, read where `sampling.penalised`. Only the set of its tokens
            matters, so it may be made unique once.
        generated: [n] int32 or uint32: tokens generated so far that the host knows, in any order,
            repeats included; read where `sampling.penalised`.
        pending: for each generated token that is still on the device, its index in `pending_tokens`
            of `sample`; read where `sampling.penalised`.
        allowed: [ceil(V / 32)] uint32, one bit for each token that may be sampled, least
            significant first; None for all.
    """

    sampling: Sampling
    seed: int = 0
    position: int = 0
    prompt: npt.NDArray[np.int32] | npt.NDArray[np.uint32] = field(
        default_factory=lambda: _NO_TOKENS
    )
    generated: npt.NDArray[np.int32] | npt.NDArray[np.uint32] = field(
        default_factory=lambda: _NO_TOKENS
    )
    pending: Sequence[int] = ()
    allowed: npt.NDArray[np.uint32] | None = None


def is_plain_greedy(sampling: Sampling) -> bool:
    """Tells whether a row of these rules needs its largest logit and nothing else.

    None stands for such a row in `SamplingBatch.build`.
    """
    return sampling.temperature == 0.0 and not _asks_more(sampling)


def is_drawn_alone(sampling: Sampling) -> bool:
    """Tells whether a row of these rules needs rules 3 to 7 and nothing else."""
    return sampling.temperature > 0.0 and not _asks_more(sampling)


def _asks_more(sampling: Sampling) -> bool:
    return bool(sampling.logit_bias) or sampling.penalised or sampling.top_logprobs is not None


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rules of a step's sampled rows.

    A part is None where no row needs it, so that what nobody asked for costs nothing.

    Attributes:
        count: rows, in the order of the logits.
        draws: rules 3 to 7 of the rows with a temperature.
        raw_logprobs: rows that ask for logprobs of the model's logits.
        greedy_logprobs: greedy rows that ask for processed logprobs.
        drawn_logprobs: drawn rows that ask for processed logprobs.
        masks: rows of which not all tokens are allowed.
        barred: rows whose mask allows no token; they are sampled as without it and fail.
    """

    count: int
    biases: Biases | None = None
    penalties: Penalties | None = None
    draws: DrawRules | None = None
    raw_logprobs: LogprobGroup | None = None
    greedy_logprobs: LogprobGroup | None = None
    drawn_logprobs: LogprobGroup | None = None
    masks: Masks | None = None
    barred: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether every row is a plain greedy one."""
        return self == SamplingBatch(self.count)

    @property
    def is_drawn_alone(self) -> bool:
        """Whether rules 3 to 7 are all that any row has."""
        return self == SamplingBatch(self.count, draws=self.draws)

    @classmethod
    def greedy(cls, count: int) -> SamplingBatch:
        """Returns a batch of `count` plain greedy rows; costs about a microsecond."""
        return cls(count)

    @classmethod
    def build(cls, rows: Sequence[SamplingRow | None], vocabulary_size: int) -> SamplingBatch:
        """Gathers the rules of `rows`; None is a plain greedy row (see `is_plain_greedy`).

        Token ids and pending indices are taken as valid: the contract's checks have been made. Must
        run on the MLX thread.
        """
        asking = [(i, row) for i, row in enumerate(rows) if row is not None]
        if not asking:
            return cls.greedy(len(rows))
        drawn = [(i, row) for i, row in asking if row.sampling.temperature > 0.0]
        groups = _logprob_groups(asking, drawn, len(rows), vocabulary_size)
        masks, barred = _masks(asking, vocabulary_size)
        return cls(
            count=len(rows),
            biases=_biases(asking),
            penalties=_penalties([(i, row) for i, row in asking if row.sampling.penalised]),
            draws=_draws(drawn, vocabulary_size) if drawn else None,
            raw_logprobs=groups[0],
            greedy_logprobs=groups[1],
            drawn_logprobs=groups[2],
            masks=masks,
            barred=barred,
        )


_Indexed = list[tuple[int, SamplingRow]]


def _indices(values: Sequence[int] | npt.NDArray[np.int32]) -> mx.array:
    return mx.array(np.asarray(values, np.int32))


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(np.asarray(values, np.float32)[:, None])


def _biases(asking: _Indexed) -> Biases | None:
    entries = [(i, token, bias) for i, row in asking for token, bias in row.sampling.logit_bias]
    if not entries:
        return None
    rows, tokens, amounts = zip(*entries, strict=True)
    return Biases(_indices(rows), _indices(tokens), mx.array(np.asarray(amounts, np.float32)))


def _masks(asking: _Indexed, vocabulary_size: int) -> tuple[Masks | None, tuple[int, ...]]:
    masked = [(i, row.allowed) for i, row in asking if row.allowed is not None]
    if not masked:
        return None, ()
    rows = np.array([i for i, _ in masked], np.int32)
    words = np.stack([allowed for _, allowed in masked])
    if vocabulary_size % _WORD_BITS:
        # Bits past the vocabulary mean nothing.
        words[:, -1] &= np.uint32((1 << vocabulary_size % _WORD_BITS) - 1)
    some = words.any(axis=1)
    barred = tuple(rows[~some].tolist())
    if len(barred) == len(rows):
        return None, barred
    return Masks(mx.array(rows[some]), mx.array(words[some])), barred


def _pairs(
    owned: Sequence[npt.NDArray[np.int32] | npt.NDArray[np.uint32]],
) -> tuple[mx.array, mx.array] | tuple[None, None]:
    """Flattens one array per owner into parallel arrays of owner and value."""
    counts = [len(values) for values in owned]
    if not any(counts):
        return None, None
    owners = np.repeat(np.arange(len(owned), dtype=np.int32), counts)
    return mx.array(owners), mx.array(np.concatenate(owned).astype(np.int32))


def _penalties(penalised: _Indexed) -> Penalties | None:
    if not penalised:
        return None
    rules = [row.sampling for _, row in penalised]
    prompt = _pairs([row.prompt for _, row in penalised])
    generated = _pairs([row.generated for _, row in penalised])
    pending = _pairs([np.asarray(row.pending, np.int32) for _, row in penalised])
    return Penalties(
        rows=_indices([i for i, _ in penalised]),
        repetition=_column([rule.repetition_penalty for rule in rules]),
        presence=_column([rule.presence_penalty for rule in rules]),
        frequency=_column([rule.frequency_penalty for rule in rules]),
        prompt_owners=prompt[0],
        prompt_tokens=prompt[1],
        generated_owners=generated[0],
        generated_tokens=generated[1],
        pending_owners=pending[0],
        pending_indices=pending[1],
    )


def _draws(drawn: _Indexed, vocabulary_size: int) -> DrawRules:
    table = np.empty((len(drawn), RULE_COUNT), np.float32)
    table[:, :UNIFORM] = [draw_numbers(row.sampling, vocabulary_size) for _, row in drawn]
    table[:, UNIFORM] = uniform(
        np.asarray([row.seed for _, row in drawn], np.uint64),
        np.asarray([row.position for _, row in drawn], np.int64),
    )
    return DrawRules(np.asarray([i for i, _ in drawn], np.int32), table)


def _logprob_groups(
    asking: _Indexed, drawn: _Indexed, count: int, vocabulary_size: int
) -> tuple[LogprobGroup | None, LogprobGroup | None, LogprobGroup | None]:
    """Groups the rows that ask for logprobs by where their logits come from."""
    raw: list[tuple[int, int, int]] = []
    greedy: list[tuple[int, int, int]] = []
    drawn_rows: list[tuple[int, int, int]] = []
    place = {i: k for k, (i, _) in enumerate(drawn)}
    for i, row in asking:
        top_count = row.sampling.top_logprobs
        if top_count is None:
            continue
        top_count = min(top_count, vocabulary_size)
        if not row.sampling.processed_logprobs:
            raw.append((i, i, top_count))
        elif i in place:
            drawn_rows.append((i, place[i], top_count))
        else:
            greedy.append((i, i, top_count))
    return (
        _logprob_group(raw, count),
        _logprob_group(greedy, count),
        _logprob_group(drawn_rows, len(drawn)),
    )


def _logprob_group(entries: list[tuple[int, int, int]], source_count: int) -> LogprobGroup | None:
    if not entries:
        return None
    rows = [row for row, _, _ in entries]
    sources = [source for _, source, _ in entries]
    top_counts = [top_count for _, _, top_count in entries]
    return LogprobGroup(
        rows=rows,
        top_counts=top_counts,
        row_indices=_indices(rows),
        source_indices=None if len(sources) == source_count else _indices(sources),
        depth=max(top_counts),
    )
