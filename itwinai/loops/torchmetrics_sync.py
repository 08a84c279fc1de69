"""Merge what the workers have accumulated in torchmetrics: to the values of one process, or an error.

torchmetrics gathers state by state, and relies on all workers having the same states: a list that is longer on one of
them, or of another type, hangs the run or mixes values up. Here the workers first tell each other what they have, in
one small message. Where they have alike, torchmetrics gathers; otherwise the states travel as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from itwinai.collectives import gather
from itwinai.compat import lightning_trainer
from itwinai.compat import torchmetrics as compat_torchmetrics
from itwinai.compat.torchmetrics import KeptState
from itwinai.errors import MetricMergeError
from itwinai.loops.metric_sync import COMPUTING, fingerprint, gather_rows

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

States = Mapping[str, Any]


class MetricSync:
    """Merges the metrics of one run over its workers.

    Args:
        trainer: the trainer.

    Attributes:
        uneven: whether this worker had more or fewer samples in a batch than others, since the epoch began.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.uneven = False
        self._set_aside: dict[int, KeptState] = {}
        self._counters: dict[int, dict[str, float]] = {}

    def merging(self) -> AbstractContextManager[None]:
        """Return a context for a loop, in which metrics that are computed are merged by this object."""
        self.uneven = False
        if self.trainer.world_size == 1:
            return nullcontext()
        self._counters = {id(metric): _counters(metric) for metric in self._metrics() if isinstance(metric, Metric)}
        return compat_torchmetrics.merging_by(self.merge)

    def weighing(self, weight: float) -> AbstractContextManager[None]:
        """Return a context for a batch; with a weight of 0 metrics are afterwards as if it had not been.

        Args:
            weight: of this worker's part of the global batch; 0 if the batch is a sample that another worker has as
                well, and 1 if all parts have one size.
        """
        if weight == 1.0:
            return _NOTHING_TO_DO
        self.uneven = True
        return _NOTHING_TO_DO if weight else self._leaving_out()

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        kept = [KeptState(metric) for metric in self._metrics()]
        self._set_aside = {id(one.metric): one for one in kept}
        try:
            yield
        finally:
            self._set_aside = {}
            for one in kept:
                one.restore()

    def merge(self, metric: Metric, by_torchmetrics: Callable[[], None]) -> None:
        """Merge the states of all workers into a metric; all workers have to call it.

        Args:
            metric: the metric, which holds what this worker has.
            by_torchmetrics: gathers and reduces the states as torchmetrics does.

        Raises:
            MetricMergeError: no merged state is that of one process; on all workers.
            LoggedKeysError: some workers compute another metric, or exchange logged values.
        """
        updates = self._take_back(metric)
        states, reductions = compat_torchmetrics.states_of(metric), compat_torchmetrics.reductions_of(metric)
        counters = self._changed_counters(metric)
        averaged = [name for name, reduction in reductions.items() if compat_torchmetrics.is_averaged(reduction)]
        layout = [_layout(name, state, reductions[name]) for name, state in states.items()]
        own = [
            updates,
            self.uneven,
            fingerprint(layout),
            any(one.endswith(_OBJECTS) for one in layout),
            fingerprint([repr(_numbers(states[name])) for name in averaged]),
            len(counters),
            max((len(state) for state in states.values() if isinstance(state, list)), default=0),
        ]
        rows = gather_rows(self.trainer.strategy, COMPUTING + self._name(metric), [float(number) for number in own])
        all_updates, uneven, layouts, objects, means, changed, lengths = map(list, zip(*rows, strict=True))
        if any(changed):
            raise self._counter_error(metric, counters)
        active = [rank for rank, number in enumerate(all_updates) if number]
        if len({means[rank] for rank in active}) > 1 and (
            any(uneven) or len({all_updates[rank] for rank in active}) > 1
        ):
            raise self._mean_error(metric, averaged)
        if len(active) not in (0, len(rows)) or len(set(layouts)) > 1 or any(objects):
            compat_torchmetrics.set_states(metric, self._merged(metric, states, reductions, updates))
        elif max(lengths) > 1:
            sizes = gather(self.trainer, _chunk_sizes(states, reductions))
            by_torchmetrics()
            compat_torchmetrics.set_states(metric, _in_order(compat_torchmetrics.states_of(metric), sizes))
        else:
            by_torchmetrics()

    def _merged(
        self, metric: Metric, states: States, reductions: Mapping[str, Callable[..., Any] | None], updates: int
    ) -> dict[str, Any]:
        """Return the states of all workers that have updated a metric, reduced as torchmetrics would."""
        own = move_data_to_device(dict(states), torch.device("cpu")) if updates else None
        everyone = [of_rank for of_rank in gather(self.trainer, own) if of_rank is not None]
        if not everyone:
            return dict(states)
        left_out = compat_torchmetrics.gathers_objects(metric)
        merged: dict[str, Any] = {}
        for name, reduction in reductions.items():
            parts = [of_rank[name] for of_rank in everyone]
            if left_out and any(_has_objects(part) for part in parts):
                merged[name] = states[name]
            elif len(parts) == 1:  # what one process would have
                merged[name] = parts[0]
            else:
                merged[name] = self._reduced(metric, name, parts, reduction)
        return move_data_to_device(merged, metric.device)

    def _reduced(self, metric: Metric, name: str, parts: Sequence[Any], reduction: Callable[..., Any] | None) -> Any:
        try:
            whole: Any = _by_turns(parts) if isinstance(parts[0], list) else torch.stack(list(parts))
            if reduction is None or (isinstance(whole, list) and (not whole or _has_objects(whole))):
                return whole
            return reduction(whole)
        except (RuntimeError, TypeError) as error:
            shapes = ", ".join(_layout(name, part, reduction) for part in parts)
            raise MetricMergeError(
                f"The states of {self._name(metric)} cannot be concatenated across ranks: {shapes}. {error} Make "
                f"update() give {name!r} the same dtype on all ranks, and the same shape except in dimension 0."
            ) from error

    def _metrics(self) -> list[Metric | MetricCollection]:
        return compat_torchmetrics.metrics_in(
            [self.trainer.lightning_module, *lightning_trainer.callbacks(self.trainer)]
        )

    def _take_back(self, metric: Metric) -> int:
        """Let a metric hold only what counts; return how many updates that are."""
        kept = self._set_aside.get(id(metric))
        if kept is None:
            return compat_torchmetrics.updates_of(metric)
        batch_only = compat_torchmetrics.computes_batch_value(metric)
        compat_torchmetrics.set_states(
            metric, compat_torchmetrics.empty_states(metric) if batch_only else kept.copied()
        )
        return 0 if batch_only else kept.updates

    def _changed_counters(self, metric: Metric) -> list[str]:
        """Return the attributes in which a metric has counted something, and which are not among its states."""
        before = self._counters.get(id(metric), {})
        return [name for name, value in _counters(metric).items() if name in before and before[name] != value]

    def _name(self, metric: Metric) -> str:
        """Return what a message calls a metric."""
        modules = self.trainer.lightning_module.named_modules()
        own = next((name for name, module in modules if module is metric), "")
        return f"{own} ({type(metric).__name__})" if own else type(metric).__name__

    def _counter_error(self, metric: Metric, counters: Sequence[str]) -> MetricMergeError:
        names = sorted({name for of_rank in gather(self.trainer, list(counters)) for name in of_rank})
        return MetricMergeError(
            f"{self._name(metric)} accumulates in {', '.join(names)}, which is not a state of the metric: each "
            f"worker has its own. Declare it in __init__: self.add_state({names[0]!r}, torch.tensor(0.0), "
            'dist_reduce_fx="sum"). If it is not part of the value, begin its name with an underscore.'
        )

    def _mean_error(self, metric: Metric, averaged: Sequence[str]) -> MetricMergeError:
        return MetricMergeError(
            f"{self._name(metric)} averages its state {', '.join(averaged)} over the workers, which counts all of them "
            "alike, and they had unequal numbers of samples. Let the state be a sum, with the number of samples as a "
            'second one (both with dist_reduce_fx="sum"), and divide in compute(); or use torchmetrics.MeanMetric.'
        )


_NOTHING_TO_DO = nullcontext()

_OBJECTS = "objects"


def _numbers(state: Any) -> Any:
    return state.tolist() if isinstance(state, Tensor) else [_numbers(part) for part in state]


def _has_objects(state: Any) -> bool:
    return isinstance(state, list) and not all(isinstance(part, Tensor) for part in state)


def _layout(name: str, state: Any, reduction: Callable[..., Any] | None) -> str:
    """Return what has to be the same on all workers for torchmetrics to gather a state."""
    if isinstance(state, Tensor):
        return f"{name}: {state.dtype} {tuple(state.shape)}"
    if _has_objects(state):
        return f"{name}: {_OBJECTS}"
    kinds = [f"{part.dtype} {('n', *part.shape[1:]) if part.ndim else ('n',)}" for part in state]
    if compat_torchmetrics.is_concatenated(reduction):  # which it is before it is gathered
        kinds = sorted(set(kinds))
    return f"{name}: {', '.join(kinds) or 'nothing'}"


def _by_turns(parts: Sequence[list[Any]]) -> list[Any]:
    """Return the elements of all workers, the first of each first: the order of the samples, if all take turns."""
    missing = object()
    return [one for turn in itertools.zip_longest(*parts, fillvalue=missing) for one in turn if one is not missing]


def _chunk_sizes(states: States, reductions: Mapping[str, Callable[..., Any] | None]) -> dict[str, list[int]]:
    """Return the lengths of what was appended to the states that will be concatenated."""
    return {
        name: [len(part) if part.ndim else 1 for part in state]
        for name, state in states.items()
        if isinstance(state, list) and compat_torchmetrics.is_concatenated(reductions[name])
    }


def _in_order(states: States, sizes: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    """Return concatenated states in the order of the updates, where all of one worker come before those of the next."""
    ordered = {}
    for name in sizes[0]:
        per_rank = states[name].split([sum(of_rank[name]) for of_rank in sizes])
        chunks = [list(own.split(of_rank[name])) for own, of_rank in zip(per_rank, sizes, strict=True)]
        ordered[name] = torch.cat(_by_turns(chunks))
    return ordered


def _counters(metric: Metric) -> dict[str, float]:
    """Return the numbers among the attributes of a metric of the user's own."""
    if type(metric).__module__.startswith("torchmetrics."):
        return {}
    return {
        name: value for name, value in vars(metric).items() if type(value) in (int, float) and not name.startswith("_")
    }
