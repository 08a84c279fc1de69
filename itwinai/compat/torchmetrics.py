"""What a metric of torchmetrics has accumulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum
from torchmetrics.utilities.distributed import gather_all_tensors


def metric_state(metric: Metric) -> dict[str, Any]:
    """Return the accumulated state of a metric, by attribute."""
    names = (*metric._defaults, "_computed", "_cache")
    state = {name: vars(metric)[name] for name in names if name in vars(metric)}
    return {**state, "_update_count": max(1, metric._update_count) if metric._is_synced else metric._update_count}


def is_updated(metric: Metric) -> bool:
    """Return whether a metric has accumulated something since its last reset."""
    return metric._update_count > 0 and not metric._is_synced


def is_synced(metric: Metric) -> bool:
    """Return whether a metric holds the synchronized state of all workers."""
    return metric._is_synced


def read_metric(metric: Metric) -> dict[str, Any] | None:
    """Return the accumulated state of a torchmetric; None if it was not updated."""
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
    """Return whether the reduced states of several workers equal the state of one process."""
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


# ------------------------------------------------------------------------------------------ merging over workers

_STOCK_SYNC = Metric._sync_dist


@contextmanager
def merging_by(merge: Callable[[Metric, Callable[[], None]], None]) -> Iterator[None]:
    """Let a function merge the states of the workers whenever a metric of this process is computed.

    Metrics that gather by a function of their own, or over a part of the workers, stay with torchmetrics.

    Args:
        merge: gets the metric, and a function that lets torchmetrics merge it.
    """

    def sync(metric: Metric, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        def by_torchmetrics() -> None:
            _STOCK_SYNC(metric, dist_sync_fn, process_group=process_group)

        if dist_sync_fn not in (None, gather_all_tensors) or process_group or metric.process_group:
            by_torchmetrics()
        else:
            merge(metric, by_torchmetrics)

    outer = Metric._sync_dist
    Metric._sync_dist = sync  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Metric._sync_dist = outer  # type: ignore[method-assign]


def states_of(metric: Metric) -> dict[str, Tensor | list[Any]]:
    """Return the accumulated states of a metric, by name."""
    return {name: getattr(metric, name) for name in metric._reductions}


def set_states(metric: Metric, states: Mapping[str, Tensor | list[Any]]) -> None:
    """Let a metric have accumulated something else."""
    for name, state in states.items():
        setattr(metric, name, state)


def empty_states(metric: Metric) -> dict[str, Tensor | list[Any]]:
    """Return the states of a metric that has accumulated nothing."""
    return {
        name: default.detach().clone().to(metric.device) if isinstance(default, Tensor) else []
        for name, default in metric._defaults.items()
    }


def reductions_of(metric: Metric) -> dict[str, Callable[..., Any] | None]:
    """Return the reduction over the workers for each state of a metric."""
    reductions: dict[str, Any] = metric._reductions
    return dict(reductions)


def is_concatenated(reduction: Callable[..., Any] | None) -> bool:
    """Return whether a state is the concatenation of those of the workers."""
    return reduction is dim_zero_cat


def is_averaged(reduction: Callable[..., Any] | None) -> bool:
    """Return whether a state is the mean of those of the workers."""
    return reduction in (dim_zero_mean, torch.mean)


def updates_of(metric: Metric) -> int:
    """Return how often a metric was updated since its last reset."""
    return metric._update_count


def computes_batch_value(metric: Metric) -> bool:
    """Return whether a metric holds the batch in work alone, whose value `forward` is computing."""
    return not metric._should_unsync


def gathers_objects(metric: Metric) -> bool:
    """Return whether the class of a metric itself gathers those of its states that are not tensors."""
    return any("_sync_dist" in vars(cls) for cls in type(metric).__mro__ if cls is not Metric)


class KeptState:
    """What a metric, or the groups of a collection, had accumulated at some time.

    Args:
        metric: the metric, or the collection.
    """

    def __init__(self, metric: Metric | MetricCollection) -> None:
        self.metric = metric
        self.updates = 0
        self.states: dict[str, tuple[Any, Any]] = {}
        names = ["_groups", "_groups_checked", "_state_is_copy"]
        if isinstance(metric, Metric):
            names = ["_update_count"]  # and not whether it is computed: the others continue with what all have computed
            self.updates = metric._update_count
            self.states = {
                name: (state, state.detach().clone() if isinstance(state, Tensor) else list(state))
                for name, state in states_of(metric).items()
            }
        self.attributes = {name: vars(metric)[name] for name in names}

    def copied(self) -> dict[str, Tensor | list[Any]]:
        """Return the states as they were."""
        return {
            name: copy.clone() if isinstance(copy, Tensor) else list(copy) for name, (_, copy) in self.states.items()
        }

    def restore(self) -> None:
        """Let the metric be as it was. Metrics that share a state, as those of a collection do, share it again."""
        with torch.no_grad():
            for name, (state, copy) in self.states.items():
                if isinstance(state, Tensor):
                    state.copy_(copy)
                else:
                    state[:] = copy
                setattr(self.metric, name, state)
        if isinstance(self.metric, Metric) or not self.attributes["_groups_checked"]:
            vars(self.metric).update(self.attributes)


def metrics_in(owners: Iterable[Any]) -> list[Metric | MetricCollection]:
    """Return the metrics that modules, callbacks and the like hold: as attributes, in lists or in dictionaries."""
    found: dict[int, Metric | MetricCollection] = {}

    def look(value: Any, depth: int) -> None:
        if isinstance(value, torch.nn.Module):
            found.update({id(one): one for one in value.modules() if isinstance(one, (Metric, MetricCollection))})
        elif depth and isinstance(value, (list, tuple, dict)):
            for one in value.values() if isinstance(value, dict) else value:
                look(one, depth - 1)

    for owner in owners:
        look(owner, 0)
        for value in list(vars(owner).values()):
            look(value, 2)
    return list(found.values())
