"""Values by which a run decides have to be logged, and to be the same on all workers.

A value that is logged without ``sync_dist`` is each worker's own. Where early stopping or a plateau scheduler monitors
one, every worker decides by itself, and they train on with different learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import ParallelStrategy

from itwinai.compat import lightning_logging, lightning_trainer
from itwinai.errors import MissingMetricError, UnequalStepsError, UnequalValuesError
from itwinai.interfaces import MonitorsMetrics
from itwinai.loops.desync_detection import ranks
from itwinai.loops.metric_sync import gather_values
from itwinai.tracebacks import is_framework
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# Values of all workers come from the same numbers; what is added up in another order differs by less.
TOLERANCE = 1e-6

_STOP = "trainer.should_stop"


def check_names(trainer: Trainer, *logged_by: lightning_logging.ResultCollection) -> None:
    """Check after the first batches that monitored metrics are logged: the end of the epoch may be hours away.

    Names that the user's code may log later are not judged: where a hook at the end of epochs is written, or where the
    name stands in the code of the module, which may log it under a condition.

    Args:
        trainer: the trainer, which has trained a batch, and validated if it validates.
        *logged_by: what training and validation have logged.

    Raises:
        MissingMetricError: a metric that is monitored is not logged.
    """
    readers = dict(_readers(trainer))
    logged = {
        name
        for results in logged_by
        for metric in results.values()
        for on_step in (True, False)
        for name in lightning_logging.published_names(results, metric, on_step)
    }
    for metric in readers.keys() - logged - {"epoch", "step"}:
        if not _may_be_logged_later(trainer, metric):
            raise MissingMetricError(metric, sorted(logged), readers[metric])


def _readers(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Yield the metrics that are monitored, each with the name of what fails without it."""
    for callback in lightning_trainer.callbacks(trainer):
        name = type(callback).__name__
        if isinstance(callback, MonitorsMetrics):
            yield from ((metric, name) for metric in callback.monitored_metrics())
        if isinstance(callback, EarlyStopping) and callback.strict:
            yield callback.monitor, name
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.save_top_k:
            yield callback.monitor, name
    for scheduler in trainer.lr_scheduler_configs:
        if scheduler.reduce_on_plateau and scheduler.strict and scheduler.monitor is not None:
            yield scheduler.monitor, type(scheduler.scheduler).__name__


def _may_be_logged_later(trainer: Trainer, metric: str) -> bool:
    """Return whether code of the user that has not run yet could log a metric."""
    hook = "on_train_epoch_end"
    for one in (trainer.lightning_module, *lightning_trainer.callbacks(trainer)):
        owners = [owner for owner in type(one).__mro__ if not is_framework(owner.__module__)]
        if any(hook in vars(owner) for owner in owners) or hook in vars(one):
            return True
        functions = (value for owner in owners for value in vars(owner).values() if hasattr(value, "__code__"))
        if any(metric in _constants(function.__code__) for function in functions):
            return True
    return False


def _constants(code: CodeType) -> Iterator[object]:
    """Yield the constants of code, and of the functions within it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants(constant)
        yield constant


def check_callbacks(trainer: Trainer, warned: set[str]) -> None:
    """Compare the values that callbacks monitor, where all workers have just read theirs.

    Args:
        trainer: the trainer.
        warned: metrics of checkpoint callbacks that were warned about; this call may add some.

    Raises:
        UnequalValuesError: a value by which early stopping decides differs between the workers.
        UnequalStepsError: some workers are to stop, and others are not.
    """
    callbacks = lightning_trainer.callbacks(trainer)
    deciding = {one.monitor: type(one).__name__ for one in callbacks if isinstance(one, EarlyStopping)}
    choosing = {
        one.monitor: type(one).__name__
        for one in callbacks
        if isinstance(one, ModelCheckpoint) and one.monitor is not None and one.monitor not in deciding
    }
    keys = deciding | choosing
    own = {key: lightning_trainer.callback_metric(trainer, key) for key in keys}
    differences = _differences(trainer, {_STOP: float(trainer.should_stop), **own})
    if (stopping := differences.pop(_STOP, None)) is not None:
        stopped, others = (
            ranks([rank for rank, stops in enumerate(stopping) if stops == value]) for value in (1.0, 0.0)
        )
        raise UnequalStepsError(
            f"trainer.should_stop is set on {stopped} but not on {others}, so some ranks would continue alone. Decide "
            "on all ranks together: trainer.should_stop = trainer.strategy.reduce_boolean_decision(stop, all=False)."
        )
    for key, values in differences.items():
        message = _describe(key, keys[key], values)
        if key in deciding:
            raise UnequalValuesError(f"{message} Otherwise each rank would decide for itself when to stop.")
        if key not in warned:
            warned.add(key)
            warn_user(f"{message} Until then, a checkpoint counts as better only if it is better on every rank.")


def check_scheduler(trainer: Trainer, key: str, value: float) -> None:
    """Compare the value that a plateau scheduler is about to read on all workers.

    Raises:
        UnequalValuesError: it differs.
    """
    for values in _differences(trainer, {key: value}).values():
        message = _describe(key, "a scheduler", values)
        raise UnequalValuesError(f"{message} Otherwise the learning rates of the ranks would diverge.")


def _differences(trainer: Trainer, own: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the values of all workers, by key, where they differ; all workers have to call it with the same keys."""
    if not own or trainer.world_size == 1 or not isinstance(trainer.strategy, ParallelStrategy):
        return {}
    return {
        key: values
        for key, values in gather_values(trainer.strategy, own).items()
        if not all(_same(value, values[0]) for value in values)
    }


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE) or math.isnan(one) and math.isnan(other)


def _describe(key: str, owner: str, values: list[float]) -> str:
    by_rank = ", ".join(f"{value:.6g} on rank {rank}" for rank, value in enumerate(values[:8]))
    return (
        f"{owner} monitors '{key}', which differs between ranks: {by_rank}. Log it with "
        f"self.log('{key}', ..., sync_dist=True) or as a torchmetric, so that all ranks get the value of all samples."
    )
