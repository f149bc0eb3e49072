"""What the core must know of a model and of the limits: plain facts, fixed while the server
runs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class GroupKind(enum.Enum):
    """What a group's blocks hold; values as in mlxrt.v1.GroupKind."""

    FULL = 1
    WINDOW = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table.

    Attributes:
        layer_indices: the group's layers.
        window: positions that a row sees, itself included; 0 for all.
        block_count: blocks of the pool, the reserved block 0 included.
        block_bytes: bytes of one block over all layers of the group.
    """

    kind: GroupKind
    layer_indices: tuple[int, ...]
    window: int
    block_count: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A loaded model, as far as it matters outside the engine.

    Attributes:
        kv_data_type: "float32", "float16" or "bfloat16".
        block_size: positions in a block, 1 to 256.
        groups: by group number.
        end_token_ids: tokens that end a text.
        fingerprint: SHA-256, hexadecimal; empty for the fake model.
        begin_token_ids: tokens that a text begins with.
    """

    model_name: str
    model_type: str
    vocabulary_size: int
    max_model_length: int
    kv_data_type: str
    block_size: int
    groups: tuple[Group, ...]
    end_token_ids: tuple[int, ...]
    fingerprint: str
    begin_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """The declared limits, as mlxrt.v1.Limits defines each."""

    max_inflight_steps: int = 2
    max_step_rows: int = 2048
    max_step_sequences: int = 256
    max_step_copies: int = 1024
    max_logits_rows: int = 16
    max_step_drafts: int = 256
    max_mask_rows: int = 512
    max_prompt_logprobs_rows: int = 2048
    max_sequences: int = 1024
    max_model_length: int = 4096
    max_sessions: int = 16
    max_message_bytes: int = 4 * 1024 * 1024
    max_logit_bias: int = 1024
    max_top_logprobs: int = 64
    min_lease_ttl_ms: int = 1_000
    max_lease_ttl_ms: int = 600_000
    default_lease_ttl_ms: int = 30_000

    @property
    def stored_replies(self) -> int:
        """Replies kept per session."""
        return self.max_inflight_steps + 2
