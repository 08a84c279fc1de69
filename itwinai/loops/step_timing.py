"""The clock of the training steps: there is one if a callback wants to know where their time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from itwinai.compat import lightning_trainer
from itwinai.interfaces import StepWatcher, TimesCommunication
from itwinai.profiling.step_timer import StepClock

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

EVERY = 11
"""One of n steps is split: the marks of a split step cost about 13 us, as much as some layers."""

FIRST = 200
"""Number of first steps that are all split."""

EVERY_ON_ACCELERATOR = 23
"""The same where splitting stops host and device from running side by side."""


def clock_for(trainer: Trainer, clock: StepClock | None) -> StepClock | None:
    """Return the clock of a fit, and give it to the callbacks that watch steps.

    Args:
        trainer: the trainer.
        clock: that of the epoch before, which continues.

    Returns:
        The clock, or None if no callback times steps.
    """
    watchers = [callback for callback in lightning_trainer.callbacks(trainer) if isinstance(callback, StepWatcher)]
    if not watchers:
        return None
    if clock is None:
        clock = _new_clock(trainer.strategy.root_device)
        if isinstance(trainer.strategy, TimesCommunication) and trainer.world_size > 1:
            trainer.strategy.time_communication(clock)
    for watcher in watchers:
        watcher.step_clock = clock
    return clock


def _new_clock(device: torch.device) -> StepClock:
    if device.type == "cuda":
        return StepClock(lambda: torch.cuda.synchronize(device), EVERY_ON_ACCELERATOR)
    return StepClock(every=EVERY, first=FIRST)
