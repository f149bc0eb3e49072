"""The table of families, as `mlxrt models` prints it and README.md has it."""

from __future__ import annotations

from mlxrt.models.registry import FAMILIES

COLUMNS = ("model_type", "mlx-lm module", "attention", "KV groups", "tested against mlx-lm")
_TESTED = "gather: equal bits; native: 1e-4"


def rows() -> list[tuple[str, ...]]:
    """One row per listed family, by name, parallel to COLUMNS."""
    return [
        (
            name,
            family.module_name,
            family.attention,
            "1" if family.attention == "full" else "2 with a window, else 1",
            _TESTED,
        )
        for name, family in sorted(FAMILIES.items())
    ]


def markdown() -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
