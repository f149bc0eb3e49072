"""Plans the memory before anything is loaded: weights + pool + worst step within the limit, or a
refusal with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxrt.attention.gather import GATHERED_POSITIONS_MAX
from mlxrt.models.errors import ModelError

CPU_POOL_BYTES_MAX = 1 << 30
"""Largest pool that the plan itself chooses on a CPU; `num_blocks` may ask for more."""

_BLOCKS_MIN = 2
# Arrays of a step that live at once beyond the ones counted: neighbours in the graph, and the next
# step's inputs.
_OVERLAP = 2


class DoesNotFitError(ModelError):
    """The model, its pool and its worst step don't fit into the memory that they may take."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What the size of the worst step depends on; widths are elements per row.

    Attributes:
        rows: rows of the largest step, padding included.
        selected_rows: rows of it that go through the head.
        context: positions of the longest sequence.
        hidden, intermediate, queries, keys: widths of the activations.
        heads: query heads.
        vocabulary_size: width of the logits.
        item_bytes: of an activation.
        gather: whether contexts are gathered before attention.
    """

    rows: int
    selected_rows: int
    context: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    heads: int
    vocabulary_size: int
    item_bytes: int
    gather: bool

    def step_bytes(self) -> int:
        """An estimate of what a step holds beside weights and pool: of two layers, since MLX, which
        builds ahead of the device, may hold arrays of more where the memory limit leaves room.
        """
        widths = 4 * self.hidden + 3 * self.intermediate + 3 * self.queries + 4 * self.keys
        activations = self.rows * widths * self.item_bytes
        # Logits as the model gives them, then float32 copies: adjusted, shifted, sorted, kept.
        logits = self.selected_rows * self.vocabulary_size * (self.item_bytes + 4 * 4)
        gathered = 0
        if self.gather:
            chunk = min(self.rows, self.context)
            # Keys and values of one call, each as gathered, zeroed and transposed.
            positions = max(self.context, min(GATHERED_POSITIONS_MAX, self.rows * self.context))
            gathered = 6 * positions * self.keys * self.item_bytes
            gathered += 2 * self.heads * chunk * self.context * self.item_bytes
        return _OVERLAP * (activations + gathered) + logits


@dataclass(frozen=True, slots=True)
class GroupBlocks:
    """The blocks of one group of layers.

    Attributes:
        window: positions that a row sees; 0 for all.
        block_bytes: of one block over all layers of the group.
        block_count: blocks of its pool, block 0 included; 0 before they are planned.
    """

    window: int
    block_bytes: int
    block_count: int = 0

    @property
    def pool_bytes(self) -> int:
        """All blocks."""
        return self.block_count * self.block_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes where, in bytes.

    Attributes:
        device_bytes: the device's memory, as far as this process may count on it.
        limit_bytes: the share of it that may be taken.
        groups: the pool, by group.
    """

    device_bytes: int
    limit_bytes: int
    weight_bytes: int
    step_bytes: int
    groups: tuple[GroupBlocks, ...]
    block_size: int

    @property
    def pool_bytes(self) -> int:
        """All blocks."""
        return sum(group.pool_bytes for group in self.groups)

    @property
    def total_bytes(self) -> int:
        """Weights, pool and worst step."""
        return self.weight_bytes + self.pool_bytes + self.step_bytes

    def figures_mib(self) -> dict[str, int]:
        """The parts, the total and the limit in MiB, and each group's blocks: for a log line."""
        parts = {
            "weights": self.weight_bytes,
            "kv_pool": self.pool_bytes,
            "worst_step": self.step_bytes,
            "total": self.total_bytes,
            "limit": self.limit_bytes,
        }
        return {f"{name}_mib": size >> 20 for name, size in parts.items()} | {
            f"group_{number}_blocks": group.block_count for number, group in enumerate(self.groups)
        }

    def table(self) -> str:
        """The plan for people, one line per part."""
        share = self.limit_bytes / self.device_bytes
        pools = (("KV pool", group.pool_bytes, self._note(group)) for group in self.groups)
        lines = (
            ("weights", self.weight_bytes, ""),
            *pools,
            ("worst step", self.step_bytes, "estimate; MLX takes more of what the limit leaves"),
            ("total", self.total_bytes, ""),
            ("limit", self.limit_bytes, f"{share:.0%} of {_mebibytes(self.device_bytes)}"),
        )
        return "\n".join(
            f"{name:<11}{_mebibytes(size):>14}  {note}".rstrip() for name, size, note in lines
        )

    def _note(self, group: GroupBlocks) -> str:
        positions = (group.block_count - 1) * self.block_size
        window = f", window {group.window}" if group.window else ""
        return f"{group.block_count} blocks, {positions} positions{window}"


def plan_memory(
    *,
    device_bytes: int,
    memory_fraction: float,
    weight_bytes: int,
    step_bytes: int,
    groups: Sequence[GroupBlocks],
    block_size: int,
    num_blocks: int | None,
    window_num_blocks: int | None,
    pool_bytes_max: int | None,
) -> MemoryPlan:
    """Returns the plan.

    Args:
        groups: by group, not yet planned.
        num_blocks: blocks of each group, asked for by the user; None for as many as fit.
        window_num_blocks: blocks of each group with a window instead; None for as many as others.
        pool_bytes_max: bound of a pool that the user did not ask for; None for none.

    Raises:
        DoesNotFitError: the parts exceed the limit; the message is the table and what is missing.
    """
    limit_bytes = int(device_bytes * memory_fraction)
    planned = [
        replace(group, block_count=(window_num_blocks or 0) if group.window else 0)
        for group in groups
    ]
    if num_blocks is None:
        free_bytes = limit_bytes - weight_bytes - step_bytes
        if pool_bytes_max is not None:
            free_bytes = min(free_bytes, pool_bytes_max)
        free_bytes -= sum(group.pool_bytes for group in planned)
        each_bytes = sum(group.block_bytes for group in planned if not group.block_count)
        num_blocks = max(_BLOCKS_MIN, free_bytes // max(1, each_bytes))
    pools = tuple(replace(group, block_count=group.block_count or num_blocks) for group in planned)
    plan = MemoryPlan(device_bytes, limit_bytes, weight_bytes, step_bytes, pools, block_size)
    excess = plan.total_bytes - limit_bytes
    if excess > 0:
        raise DoesNotFitError(
            f"{_mebibytes(excess)} more than the limit:\n{plan.table()}\n"
            "Lower num_blocks or the limits on rows and length, or raise memory_fraction."
        )
    return plan


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
