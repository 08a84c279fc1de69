"""What speed-ups are relative to, where that is not a single worker."""

from __future__ import annotations

from itwinai.benchmark.statistics.groups import named
from itwinai.benchmark.statistics.summary import Axes, Summary


def relative_text(summary: Summary, axes: Axes | None = None) -> str:
    """Return what stands below a table of speed-ups whose baseline has several workers; empty if it has one.

    Args:
        summary: the benchmark.
        axes: of the cells in the table; by default all.
    """
    baselines = [one.cell for one in summary.baselines if axes is None or one.cell.axes == axes]
    told = dict.fromkeys(
        f"{named(cell)}, whose speed-up is set to {cell.workers:,}" for cell in baselines if cell.workers > 1
    )
    return f"Speed-ups are relative to {'; '.join(told)}." if told else ""
