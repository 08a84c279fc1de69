"""What a metric of torchmetrics has accumulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum


def metric_state(metric: Metric) -> dict[str, Any]:
    """Return what a metric has accumulated, by attribute."""
    names = (*metric._defaults, "_update_count", "_computed", "_cache")
    return {name: vars(metric)[name] for name in names if name in vars(metric)}


def is_updated(metric: Metric) -> bool:
    """Tell whether a metric has accumulated something since its last reset."""
    return metric._update_count > 0 and not metric._is_synced


def read_metric(metric: Metric) -> dict[str, Any] | None:
    """Return what a metric of torchmetrics has accumulated; None if there is nothing."""
    if not metric._update_count:
        return None
    states = {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else [part.detach().cpu() for part in value]
        for name, value in metric.metric_state.items()
    }
    return {"updates": metric._update_count, "states": states}


def write_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Let a metric continue with what `read_metric` returned."""
    for name, value in kept["states"].items():
        there = (
            value.to(metric.device, copy=True) if isinstance(value, Tensor) else [v.to(metric.device) for v in value]
        )
        setattr(metric, name, there)
    metric._update_count = kept["updates"]
    metric._computed = None


def can_merge(metric: Metric) -> bool:
    """Tell whether what several workers have accumulated in a metric is that of one, once reduced."""
    return all(
        reduction in (dim_zero_sum, dim_zero_max, dim_zero_min, dim_zero_cat)
        for reduction in metric._reductions.values()
    )


def merge_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Add what `read_metric` returned for another worker to what a metric has accumulated."""
    there = {
        name: value.to(metric.device) if isinstance(value, Tensor) else [part.to(metric.device) for part in value]
        for name, value in kept["states"].items()
    }
    metric._update_count += kept["updates"]
    metric._reduce_states(there)
