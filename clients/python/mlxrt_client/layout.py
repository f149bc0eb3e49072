"""How many blocks a sequence needs in each group, and which of them a sliding window has left.

Symbols: B positions in a block, w the window of a group (0 for none), p the position of a row.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlxrt_client.v1 import GetModelInfoResponse

Tables = dict[int, list[int]]
"""Block ids by group, in the order of a sequence's positions; 0 is a hole."""


class BlockLayout:
    """The groups of a model: pure arithmetic on positions and tables."""

    def __init__(self, model: GetModelInfoResponse, step_rows_max: int) -> None:
        """Takes the model's groups; `step_rows_max` is the most rows of a sequence in one step."""
        self.block_size = model.block_size
        self.windows = {group.group: group.window for group in model.groups}
        self._step_rows_max = step_rows_max

    def blocks_for(self, position_count: int) -> int:
        """Returns how many blocks hold so many positions from the first on."""
        return -(-position_count // self.block_size)

    def held(self, position_count: int) -> dict[int, int]:
        """Returns, by group, the most blocks that a sequence of so many positions has at once.

        A windowed group needs what the rows of one step see: the w - 1 positions before them and
        their own, which may begin and end in the middle of a block.
        """
        needed, rows = self.blocks_for(position_count), self._step_rows_max
        return {
            group: min(needed, self.blocks_for(window + rows - 2) + 1) if window else needed
            for group, window in self.windows.items()
        }

    def missing(self, tables: Mapping[int, list[int]], position_count: int) -> dict[int, int]:
        """Returns, by group, how many blocks `tables` lack for so many positions; {} if none."""
        needed = self.blocks_for(position_count)
        counts = {group: needed - len(tables[group]) for group in self.windows}
        return {group: count for group, count in counts.items() if count > 0}

    def left(self, position: int) -> dict[int, int]:
        """Returns, by windowed group, how many leading blocks no row from `position` on sees.

        The row at p sees the positions above p - w.
        """
        return {
            group: max(0, position + 1 - window) // self.block_size
            for group, window in self.windows.items()
            if window
        }

    def take_left(
        self, tables: Mapping[int, list[int]], position: int
    ) -> tuple[dict[int, int], Tables]:
        """Makes holes of what the rows from `position` on do not see.

        Returns:
            The number of leading holes by group, where it has grown, and the blocks taken out.
        """
        holes: dict[int, int] = {}
        taken: Tables = {}
        for group, count in self.left(position).items():
            table = tables[group]
            blocks = [block_id for block_id in table[:count] if block_id]
            if blocks:
                table[:count] = [0] * len(table[:count])
                holes[group], taken[group] = len(table[:count]), blocks
        return holes, taken

    def is_torn(self, tables: Mapping[int, list[int]], position: int) -> bool:
        """Returns whether a row at `position` would see a hole of `tables`."""
        return any(0 in tables[group][count:] for group, count in self.left(position).items())
