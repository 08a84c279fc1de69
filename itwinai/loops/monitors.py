"""Values by which workers decide on the course of a run have to be the same on all of them.

A value that is logged without ``sync_dist`` is each worker's own. Where early stopping or a plateau scheduler monitors
one, every worker decides by itself, and they train on with different learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from itwinai import compat
from itwinai.errors import UnequalStepsError, UnequalValuesError
from itwinai.loops.exchange import gather_values
from itwinai.loops.missing import ranks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# Values of all workers come from the same numbers; what is added up in another order differs by less.
TOLERANCE = 1e-6

_STOP = "trainer.should_stop"


def check_callbacks(trainer: Trainer, told: set[str]) -> None:
    """Compare the values that callbacks monitor, where all workers have just read theirs.

    Args:
        trainer: the trainer.
        told: keys of checkpoint callbacks that have been warned of, to which this may add one.

    Raises:
        UnequalValuesError: a value by which early stopping decides differs between the workers.
        UnequalStepsError: some workers are to stop, and others are not.
    """
    callbacks = compat.callbacks(trainer)
    deciding = {one.monitor: type(one).__name__ for one in callbacks if isinstance(one, EarlyStopping)}
    choosing = {
        one.monitor: type(one).__name__
        for one in callbacks
        if isinstance(one, ModelCheckpoint) and one.monitor is not None and one.monitor not in deciding
    }
    keys = deciding | choosing
    own = {key: compat.callback_metric(trainer, key) for key in keys}
    differences = _differences(trainer, {_STOP: float(trainer.should_stop), **own})
    if (stopping := differences.pop(_STOP, None)) is not None:
        stopped, others = (
            ranks([rank for rank, stops in enumerate(stopping) if stops == value]) for value in (1.0, 0.0)
        )
        raise UnequalStepsError(
            f"trainer.should_stop is set on {stopped}, and not on {others}: some would go on alone. Set it on all "
            "at once: trainer.should_stop = trainer.strategy.reduce_boolean_decision(stop, all=False), called on all."
        )
    for key, values in differences.items():
        message = _describe(key, keys[key], values)
        if key in deciding:
            raise UnequalValuesError(f"{message} As it is, each would decide by its own.")
        if key not in told:
            told.add(key)
            rank_zero_warn(f"{message} As it is, a checkpoint counts as better only if it is better for each worker.")


def check_scheduler(trainer: Trainer, key: str, value: float) -> None:
    """Compare the value that a plateau scheduler is about to read on all workers.

    Raises:
        UnequalValuesError: it differs.
    """
    for values in _differences(trainer, {key: value}).values():
        message = _describe(key, "a scheduler", values)
        raise UnequalValuesError(f"{message} As it is, each would get a learning rate of its own.")


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
        f"The workers have different values of '{key}', which {owner} monitors: {by_rank}. Log it with "
        f"self.log('{key}', ..., sync_dist=True), or as a torchmetric: then all have the value of all samples."
    )
