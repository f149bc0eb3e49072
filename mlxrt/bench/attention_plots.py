"""The attention grid as pictures: one PNG per type, layout and block size. Needs the extra `plots`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SERIES = {
    "paged_us": "paged", "gather_us": "gather + SDPA", "gather_only_us": "gather only",
    "contiguous_us": "contiguous SDPA", "append_us": "append",
}  # fmt: skip


def require_plots() -> None:
    """Raises ImportError, which says what to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mlxrt[plots]'") from error


def write_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draws times over contexts, one panel per batch, both axes logarithmic; returns the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_plots()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys((c["dtype"], c["layout"], c["block_size"]) for c in report["cells"])
    return [_draw(report, folder, *kind) for kind in kinds]


def _draw(
    report: dict[str, Any], folder: Path, dtype: str, layout: str, block_size: int
) -> Path:
    from matplotlib.figure import Figure

    cells = [
        c for c in report["cells"]
        if (c["dtype"], c["layout"], c["block_size"]) == (dtype, layout, block_size)
    ]  # fmt: skip
    batches = sorted({c["batch"] for c in cells})
    figure = Figure(figsize=(4.2 * len(batches), 4), layout="constrained")
    kind = f"{dtype}, {layout}, block {block_size}"
    figure.suptitle(f"decode attention on {report['device']}: {kind}")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    for panel, batch in zip(panels, batches, strict=True):
        row = sorted((c for c in cells if c["batch"] == batch), key=lambda c: c["context"])
        for name, label in SERIES.items():
            points = [(c["context"], c[name]) for c in row if c[name] is not None]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=label)
        panel.set(title=f"batch {batch}", xlabel="context", xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("microseconds")
    panels[0].legend()
    path = folder / f"attention_{dtype}_{layout}_block{block_size}.png"
    figure.savefig(path, dpi=110)
    return path
