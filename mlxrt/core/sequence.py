"""One registered sequence."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Row

from mlxrt.core.block import Block, Table
from mlxrt.core.bounds import Bounds
from mlxrt.core.sampling import Sampling
from mlxrt.errors import MlxrtError


class Sequence:
    """Tokens, tables and position of a sequence: as committed, and as it will be once every
    accepted step has run.

    Attributes:
        handle: its number with the engine.
        tables: by group. Table changes are true from acceptance on, so there is one state of them.
        tokens: the known tokens, as committed.
        committed: position, as committed.
        committed_given: whether the last token of `tokens` was sampled or given, rather than of the
            prompt.
        planned, known, given: position, number of known tokens and the same question after the
            accepted steps.
        prompt_left: how many tokens of its prompt still stand, as committed: given ones may have
            taken the place of the rest.
        prompt_top: how many alternatives its prompt logprobs have; None where it asked for none.
        failure: set where only release is allowed.
        meant_position, meant_tables: of one that failed: where it would stand after the accepted
            steps, and its tables, had it not. Its owner may not know yet.
        decode_limit: a plain decode at `planned` below this needs no check: `tails` are its blocks,
            named by no other table, filled exactly up to that position.
        unsettled: whether an accepted step verifies drafts of it. `planned` and `known` are then
            what they will be if none is accepted, and the sequence takes no rows.
        verified, checked_from: where `verified`, positions `checked_from[g]` to `planned - 1` were
            found computed and not holes in group g, and nothing has changed that since.
    """

    __slots__ = (
        "checked_from",
        "committed",
        "committed_given",
        "decode_limit",
        "failure",
        "given",
        "handle",
        "known",
        "meant_position",
        "meant_tables",
        "planned",
        "prompt_count",
        "prompt_left",
        "prompt_top",
        "sampling",
        "seed",
        "sequence_id",
        "tables",
        "tails",
        "tokens",
        "unsettled",
        "verified",
    )

    def __init__(
        self,
        sequence_id: int,
        prompt: Row[int],
        tables: list[Table],
        sampling: Sampling,
        seed: int,
    ) -> None:
        """A sequence that stands at 0 and has no handle yet."""
        self.sequence_id = sequence_id
        self.handle = -1
        self.tables = tables
        self.sampling = sampling
        self.seed = seed
        self.tokens = array("I", prompt)
        self.prompt_count = len(self.tokens)
        self.prompt_left = self.prompt_count
        self.prompt_top: int | None = None
        self.committed = 0
        self.committed_given = False
        self.planned = 0
        self.known = len(self.tokens)
        self.given = False
        self.failure: MlxrtError | None = None
        self.meant_position = 0
        self.meant_tables: list[Table] = []
        self.decode_limit = 0
        self.tails: tuple[Block, ...] = ()
        self.unsettled = False
        self.verified = False
        self.checked_from = [0] * len(tables)

    def arm(self, bounds: Bounds) -> None:
        """Opens the plain path up to the end of the block at `planned` where it may be taken; rows
        just ended there.
        """
        self.disarm()
        offset = self.planned % bounds.block_size
        if offset == 0 or not self.given or self.known != self.planned + 1:
            return
        index = self.planned // bounds.block_size
        tails: list[Block] = []
        for table in self.tables:
            block = table[index]
            if block is None or block.refs != 1 or block.filled != offset:
                return
            tails.append(block)
        self.tails = tuple(tails)
        for block in tails:
            block.is_tail = True
        self.decode_limit = min((index + 1) * bounds.block_size, bounds.max_length - 1)

    def disarm(self) -> None:
        """Closes the plain path."""
        self.decode_limit = 0
        for block in self.tails:
            block.is_tail = False
        self.tails = ()

    def distrust(self) -> None:
        """Forgets what was verified: something that it rests on may have changed."""
        self.disarm()
        self.verified = False

    def fail(self, failure: MlxrtError) -> None:
        """Allows nothing but release from now on; to be reverted then."""
        self.failure = failure
        self.meant_position, self.meant_tables = self.planned, self.tables

    def revert(self) -> None:
        """Plans from what is committed: every accepted step that had not committed is discarded."""
        self.planned = self.committed
        self.known = len(self.tokens)
        self.given = self.committed_given
        self.unsettled = False
        self.distrust()

    @property
    def generated_count(self) -> int:
        """Committed tokens that came after the prompt, or after what is left of it."""
        return len(self.tokens) - self.prompt_left
