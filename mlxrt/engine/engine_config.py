"""What an MLX engine is made from. Imports no mlx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Attributes:
        model: a local folder, a Hugging Face hub name, or "bundled".
        dtype: type of activations, keys and values; "auto" is float32 on a CPU, else the
            checkpoint's own.
        attention: "auto" is native where that runs on the device, else gather.
        compiled: "on" replays decode steps of a shape that was met before instead of building them;
            native attention alone can; "auto" does so on GPUs.
        fused: "on" runs layers of llama's build in few operations, over weights merged at load;
            native attention alone can; "auto" does so where the model is of that build.
        block_size: positions in a block, 1 to 256.
        num_blocks: blocks of each group's pool, block 0 included, at least 2; None for as many as
            the memory plan allows.
        window_num_blocks: blocks of the pool of each group with a sliding window, where they shall
            be others; at least 2.
        memory_fraction: share of the device's memory that weights, pool and steps may take, above
            0, to 1.
        max_model_length: positions of one sequence; the model's own length, where shorter, wins.
        max_step_rows, max_step_sequences, max_step_drafts, max_logits_rows: the largest step, for
            the memory plan and the warm-up.
        row_buckets: ascending row counts that a forward is padded up to; a larger step is not
            padded. Empty for no padding; None for the device's default (none on a CPU).
        poison_pool: fill the pool with NaN at start, as tests do.
        accept_dropped_semantics: compute as mlx-lm does even where it ignores a field of the
            checkpoint's config.
    """

    model: str
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["auto", "native", "gather"] = "auto"
    compiled: Literal["auto", "on", "off"] = "auto"
    fused: Literal["auto", "on", "off"] = "auto"
    block_size: int = 16
    num_blocks: int | None = None
    window_num_blocks: int | None = None
    memory_fraction: float = 0.8
    max_model_length: int = 4096
    max_step_rows: int = 2048
    max_step_sequences: int = 256
    max_step_drafts: int = 256
    max_logits_rows: int = 16
    row_buckets: tuple[int, ...] | None = None
    poison_pool: bool = False
    accept_dropped_semantics: bool = False


def default_buckets(max_step_rows: int) -> tuple[int, ...]:
    """Powers of two up to 64, then multiples of 64 through `max_step_rows`."""
    small = [1 << power for power in range(7)]
    return tuple(small + list(range(128, max_step_rows + 64, 64)))
