"""One open session."""

from __future__ import annotations

from collections import deque

from mlxrt.core.block import Block, Table
from mlxrt.core.replies import ReplyStore
from mlxrt.core.requests import RequestStore
from mlxrt.core.sequence import Sequence
from mlxrt.core.ticket import Ticket

_REQUESTS_KEPT = 64


class Session:
    """What a scheduler holds.

    Attributes:
        blocks: by group, the leased blocks by id.
        inflight: accepted steps without an outcome, oldest first.
        queue: those of them that were not handed out.
        unregistered: sequences that the engine does not know under their present handle; the next
            step registers them.
        next_step_number: one more than the last accepted.
        shared: by group, the leased blocks that two table entries name or more.
    """

    __slots__ = (
        "blocks",
        "client_name",
        "epoch",
        "expiry_ms",
        "inflight",
        "lease_ttl_ms",
        "next_step_number",
        "queue",
        "replies",
        "requests",
        "seed",
        "sequences",
        "session_id",
        "shared",
        "unregistered",
    )

    def __init__(
        self,
        session_id: str,
        seed: int,
        client_name: str,
        lease_ttl_ms: int,
        now_ms: int,
        *,
        group_count: int,
        stored_replies: int,
    ) -> None:
        """A session under epoch 1 that holds nothing."""
        self.session_id = session_id
        self.seed = seed
        self.client_name = client_name
        self.lease_ttl_ms = lease_ttl_ms
        self.expiry_ms = now_ms + lease_ttl_ms
        self.epoch = 1
        self.next_step_number = 1
        self.sequences: dict[int, Sequence] = {}
        self.blocks: list[dict[int, Block]] = [{} for _ in range(group_count)]
        self.shared = [0] * group_count
        self.inflight: deque[Ticket] = deque()
        self.queue: deque[Ticket] = deque()
        self.unregistered: dict[Sequence, None] = {}
        self.replies = ReplyStore(stored_replies)
        self.requests = RequestStore(_REQUESTS_KEPT)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or will run for it unless its client says so."""
        return not self.inflight or self.inflight[0].waits_for_masks

    def renew(self, now_ms: int) -> None:
        """Starts the lease anew."""
        self.expiry_ms = now_ms + self.lease_ttl_ms

    def unname(self, tables: list[Table]) -> None:
        """Takes the entries of tables that are gone off the counts."""
        for table in tables:
            for block in table:
                if block is not None:
                    self.count_names(block, -1)

    def count_names(self, block: Block, change: int) -> None:
        """Notes that `change` more table entries name the block."""
        before = block.refs
        block.refs = after = before + change
        self.shared[block.group] += (after > 1) - (before > 1)

    def distrust_all(self) -> None:
        """Makes every sequence prove its next reads and writes anew."""
        for sequence in self.sequences.values():
            sequence.distrust()
