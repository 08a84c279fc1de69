"""A summary of the model in few lines."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override


class ShortModelSummary(ModelSummary):
    """Print a row per layer, and the totals in one line, without the columns in which there is nothing.

    Args:
        max_depth: how deep the layers are listed; 0 prints nothing.
    """

    @staticmethod
    @override
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        columns = [
            (name, cells)
            for name, cells in summary_data
            if (name != "FLOPs" or total_flops) and (name != "Mode" or total_training_modes["eval"])
        ]
        widths = [max(map(len, [name, *cells])) for name, cells in columns]
        rows = [[name for name, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        totals = f"{get_human_readable_count(total_parameters).strip()} parameters"
        if frozen := total_parameters - trainable_parameters:
            totals += f", {get_human_readable_count(frozen).strip()} of them frozen"
        if total_flops:
            totals += f", {get_human_readable_count(total_flops).strip()} FLOPs"
        rank_zero_info("\n".join([*lines, f"{totals}, {model_size:.3g} MB"]))
