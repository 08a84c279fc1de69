"""Figures of what a module has learned: the plots of its torchmetrics, and its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures_of(module: LightningModule, stage: str) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a module, by name: plots of metrics that were updated, and what ``epoch_figures`` returns.

    All workers have to call it: to compute a metric takes them all. What is computed here is not computed again later.

    Args:
        module: the module.
        stage: "train" or "validation". Metrics whose names begin with that of another stage are left out.
    """
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name and metric.update_called and not _is_of_other_stage(name, stage):
            value = metric.compute()
            if plot := _plot(metric, value):
                yield f"{stage}/{name.replace('.', '/')}", plot
    own = getattr(module, "epoch_figures", None)
    if own is not None and stage == "train":
        figures: Mapping[str, Figure] = own()
        yield from figures.items()


def _plot(metric: Metric, value: Any) -> Figure | None:
    if not _is_plottable(value):
        return None
    figure, _ = metric.plot(value)
    return figure


def _is_plottable(value: Any) -> bool:
    """Return whether torchmetrics draws more than a single number; that is in the curve of the logged value already."""
    if isinstance(value, Tensor):
        return value.numel() > 1 and bool(torch.isfinite(value.float()).any())
    return isinstance(value, (tuple, list))


def _is_of_other_stage(name: str, stage: str) -> bool:
    first = name.split(".")[0].split("_")[0]
    other = {"train": ("val", "valid", "validation", "test"), "validation": ("train", "test")}[stage]
    return first in other
