"""The forms of a step on its way: what a client asks (`StepInput`), what the engine runs
(`StepPlan`), what it answers (`StepOutcome`), what is stored and sent (`StepReply`).

A handle is the core's own number of a sequence, unique for the life of the process, so that the
engine's memory of a released sequence can't be mistaken for its successor of the same id.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.errors import MlxrtError


class TokenSource(enum.Enum):
    """Where the rows of an item take their tokens from."""

    REGISTERED = "registered"
    EXPLICIT = "explicit"
    LAST_SAMPLED = "last_sampled"


class Phase(enum.Enum):
    """What of a step a plan is.

    A step that defers its sampling is two plans of one ticket, each with an outcome; other
    sessions' plans may come between them, the session's own may not.
    """

    WHOLE = "whole"
    FORWARD = "forward"
    SAMPLING = "sampling"


# ---- what a client asks -------------------------------------------------------------------------


@dataclass(slots=True)
class NewSequence:
    """A registration. `tables[g]` are the block ids of group g; `seed` None asks for a derived
    one.
    """

    sequence_id: int
    prompt: Sequence[int]
    tables: dict[int, list[int]] = field(default_factory=dict)
    sampling: Sampling = GREEDY
    seed: int | None = None
    prompt_top_logprobs: int | None = None


@dataclass(slots=True)
class Item:
    """What one sequence does in a step, as mlxrt.v1.StepItem defines each field.

    Attributes:
        append: blocks to append, by group; None for none.
        replace: new tables, by group; None for no replacement, empty for a preemption.
        leading_holes: number of leading entries that become holes, by group.
    """

    sequence_id: int
    row_count: int = 0
    start_position: int | None = None
    source: TokenSource | None = None
    token_ids: Sequence[int] = ()
    append: dict[int, list[int]] | None = None
    replace: dict[int, list[int]] | None = None
    leading_holes: dict[int, int] | None = None
    sample: bool = False
    return_logits: bool = False
    draft_tokens: Sequence[int] = ()


@dataclass(slots=True)
class Mask:
    """Which tokens a sequence may sample.

    Attributes:
        row_count: one more than the sequence has drafts.
        allowed: by row, one bit for each token in little-endian 32-bit words, least significant
            first.
    """

    sequence_id: int
    row_count: int
    allowed: bytes


@dataclass(slots=True)
class StepInput:
    """A step as asked for. `digest` identifies its content; equal content has an equal digest.

    Attributes:
        copies: `(group, source block id, destination block id)`.
        deferred: the masks come later, and sampling with them.
    """

    step_number: int
    digest: bytes
    releases: Sequence[int] = ()
    copies: Sequence[tuple[int, int, int]] = ()
    new_sequences: Sequence[NewSequence] = ()
    decode_ids: Sequence[int] = ()
    items: Sequence[Item] = ()
    masks: Sequence[Mask] = ()
    deferred: bool = False


# ---- what the engine runs -----------------------------------------------------------------------


@dataclass(slots=True)
class Registration:
    """A sequence that the engine must know from this plan on.

    After a discarded step a sequence comes back under a new handle (the old one is retired), so
    that nothing of what the step left in the engine survives: `prompt` is then all that is known of
    it.

    Attributes:
        generated_count: how many of the last tokens of `prompt` were generated or given later, some
            perhaps in place of the prompt's own (penalties count them); 0 for a new sequence.
    """

    handle: int
    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    generated_count: int = 0


@dataclass(slots=True)
class TableUpdate:
    """A change to one table: write `block_ids` from entry `first_index` on; afterwards it has
    `length` entries.
    """

    handle: int
    group: int
    first_index: int
    block_ids: list[int]
    length: int


@dataclass(slots=True)
class Entry:
    """Rows of one sequence: positions `start` to `start + count - 1`, a token sampled after them or
    not.

    Attributes:
        source: REGISTERED takes the tokens that the engine holds for those positions (some may
            still be on the device); EXPLICIT takes `token_ids`, which replace what was known from
            `start` on; LAST_SAMPLED is REGISTERED with one row.
        draft_tokens: tokens to verify, one more row each behind the others. The engine holds of
            them only those that it accepts.
        prompt_rows: how many rows, from the first, answer logprobs of the token behind them, which
            is of the prompt; with `prompt_top` alternatives.
    """

    handle: int
    start: int
    count: int
    source: TokenSource
    token_ids: Sequence[int] = ()
    sample: bool = False
    return_logits: bool = False
    draft_tokens: Sequence[int] = ()
    prompt_rows: int = 0
    prompt_top: int = 0


@dataclass(slots=True)
class StepPlan:
    """A validated step, complete in itself: the engine needs nothing else of the core's.

    The engine applies, in this order: `retired`, `registrations`, `table_updates`, `copies`, rows
    (decode rows first, in order, then entries, in order), sampling. Every id in it has been checked
    against the pool and the vocabulary.

    A plan handed out behind one that then fails may take tokens that were never sampled. The engine
    runs it or not, as it likes, and answers it; the core has discarded it already and knows its
    sequences under new handles.

    Attributes:
        ticket: number of the acceptance, rising over all sessions.
        retired: handles that this and later plans do not name; one that a failed plan was to
            register may be among them.
        decode_handles, decode_starts: parallel; one row each at that position, token source
            LAST_SAMPLED, sampled.
        masks: by handle, `Mask.allowed` of the sequences that have one.
        phase: FORWARD runs all but the sampling, answers an outcome without tokens and keeps what
            sampling needs; SAMPLING samples what the FORWARD of the same ticket kept, has `retired`
            and `masks` alone, and answers as the whole would have.
        cancelled: set when a predecessor failed or the session is gone: apply `retired`,
            `registrations` and `table_updates`, skip copies, rows and sampling, drop what a FORWARD
            kept, and answer an outcome all the same.
    """

    ticket: int
    retired: list[int] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    table_updates: list[TableUpdate] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    decode_handles: list[int] = field(default_factory=list)
    decode_starts: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    masks: dict[int, bytes] = field(default_factory=dict)
    phase: Phase = Phase.WHOLE
    cancelled: bool = False


# ---- what the engine answers --------------------------------------------------------------------


@dataclass(slots=True)
class PromptLogprobs:
    """Logprobs of n prompt tokens, k alternatives each, as mlxrt.v1.PromptLogprobs has them."""

    first_position: int
    logprobs: list[float]
    ranks: list[int]
    top_count: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)
class SampledRow:
    """What one sampled (or logits-returning) row gave beyond its token.

    Attributes:
        token: the token; None where the entry does not sample or failed.
        logprob: of the token; None where not asked for.
        top: `(token id, logprob)`, most probable first.
        rank: 1 + number of tokens more probable than the sampled one; 0 without `top`.
        logits: little-endian float32 bytes of the whole row; None where not asked for.
        failure: set where this row alone failed.
        accepted: of an entry with drafts, the rows that drew the accepted ones; `token` comes after
            them.
        prompt: of an entry with `prompt_rows`, what they gave.
    """

    token: int | None = None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    rank: int = 0
    logits: bytes | None = None
    failure: MlxrtError | None = None
    accepted: Sequence[SampledRow] = ()
    prompt: PromptLogprobs | None = None


@dataclass(slots=True)
class Timings:
    """As mlxrt.v1.StepTimings; microseconds. The engine leaves `queue_us` to its caller.

    Attributes:
        begun_s: when the engine began to build, on the clock of `time.perf_counter`; 0 where it
            did not.
        device_from_s: likewise, when the device turned to the step.
    """

    queue_us: int = 0
    build_us: int = 0
    device_us: int = 0
    sample_us: int = 0
    begun_s: float = 0.0
    device_from_s: float = 0.0


@dataclass(slots=True)
class StepOutcome:
    """The engine's answer to a plan; answers come in the order of the plans.

    Attributes:
        decode_tokens: one per decode handle; the value is without meaning where `decode_details`
            has a failure.
        decode_details: by index into the decode handles, for those that have more than a token
            (logprob, top, failure).
        entry_rows: one per entry.
        bucket_row_count: rows of the forward after padding, 0 without rows.
        failure: set where the whole step failed; everything else is then empty.
    """

    ticket: int
    decode_tokens: Sequence[int] = ()
    decode_details: dict[int, SampledRow] = field(default_factory=dict)
    entry_rows: list[SampledRow] = field(default_factory=list)
    bucket_row_count: int = 0
    timings: Timings = field(default_factory=Timings)
    failure: MlxrtError | None = None


# ---- what is stored and sent --------------------------------------------------------------------


@dataclass(slots=True)
class ItemReply:
    """Result of one sequence: `row` as the engine gave it, `position` where the sequence stands
    now.
    """

    sequence_id: int
    position: int
    row: SampledRow


@dataclass(slots=True)
class StepReply:
    """The answer to a step, as stored for repeats.

    Attributes:
        token_ids: one per decode id; FAILED_TOKEN where `details` holds the failure.
        logprobs: empty unless a decode sequence asked for logprobs; then one per decode id, NaN
            where not asked for.
        details: decode sequences that have more to say, in the order of the decode ids.
        items: one per item.
        free_blocks: by group.
        error: set where the accepted step did not commit.
    """

    step_number: int
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    details: list[ItemReply] = field(default_factory=list)
    items: list[ItemReply] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    free_blocks: tuple[int, ...] = ()
    bucket_row_count: int = 0
    error: MlxrtError | None = None


FAILED_TOKEN = 0xFFFFFFFF
