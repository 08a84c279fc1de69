"""The batch size of a prediction: set for loaders that have another one, or found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from itwinai.collectives import gather
from itwinai.compat import lightning_dataloaders, lightning_loops
from itwinai.loops.hook_plan import BatchTransfer, ProfilerSpans, step_call
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

GAIN = 1.1
"""How much faster a batch twice as large has to be."""

SECONDS = 3.0
"""A batch that takes longer than this is large enough."""


def set_batch_size(loader: Any, size: int, batches: float) -> float:
    """Let a loader of a prediction give batches of another size.

    Args:
        loader: the loader, prepared.
        size: number of samples per batch and worker.
        batches: number of batches to predict.

    Returns:
        The number of batches to predict: all again, if all were to be predicted.
    """
    everything = sized_len(loader) == batches
    lightning_dataloaders.set_batch_size(loader, size)
    length = sized_len(loader)
    return batches if length is None else length if everything else min(batches, length)


def fastest_batch_size(trainer: Trainer, loader: Any, dataloader_idx: int) -> int | None:
    """Try batches of growing size on a loader's first samples; return the size with the most samples per second.

    All workers try at the same time, as they will predict. Sizes double from the loader's own on, up to that where
    memory ends, doubling gains less than a tenth, or a worker has no more samples.

    Args:
        trainer: the trainer, within ``predict``.
        loader: of the prediction, prepared.
        dataloader_idx: its index.

    Returns:
        The size; None if the loader has no batch size of its own to change.
    """
    own = lightning_dataloaders.own_batch_size(loader)
    samples = sized_len(getattr(loader, "dataset", None))
    if own is None or not samples:
        return None
    best, best_speed, size = own, 0.0, own
    while size <= max(own, samples // trainer.world_size):
        seconds, reason = _tried(trainer, loader, dataloader_idx, min(size, samples))
        tried = gather(trainer, (seconds, reason))
        failures = [text for _, text in tried if text]
        if failures and failures[0] != _OUT_OF_MEMORY:
            warn_user(
                f"batch_size='auto' could not try predict_step before the prediction begins ({failures[0]}), and keeps "
                f"the loader's {own}."
            )
            return None
        if failures:
            break
        slowest = max(seconds for seconds, _ in tried)
        if size / slowest < GAIN * best_speed:
            break
        best, best_speed = size, size / slowest
        if slowest > SECONDS:
            break
        size *= 2
    rank_zero_info(f"itwinai: batch size {best} ({best_speed:,.0f} samples/s per worker; the loader's own is {own})")
    return best


_OUT_OF_MEMORY = "out of memory"


def _tried(trainer: Trainer, loader: Any, dataloader_idx: int, size: int) -> tuple[float | None, str]:
    """Return the seconds that a batch takes, or None and why there are none."""
    module = trainer.lightning_module
    spans = ProfilerSpans(trainer)
    transfer, step = BatchTransfer(trainer, spans), step_call("predict_step", "predict_step_context", trainer, spans)
    which: tuple[int, ...] = (dataloader_idx,) if trainer.predict_loop.num_dataloaders > 1 else ()
    numbered = lightning_loops.takes_batch_idx(module.predict_step)

    def predict() -> None:
        batch = transfer(lightning_dataloaders.first_batch(loader, size), dataloader_idx)
        step(batch, 0, *which) if numbered else step(batch, *which)

    training = module.training
    module.eval()
    try:
        with isolate_rng():
            return _seconds(predict), ""
    except Exception as error:  # the prediction continues with the loader's own batches, and would raise it again
        if is_oom_error(error):
            garbage_collection_cuda()
            return None, _OUT_OF_MEMORY
        return None, f"{type(error).__name__}: {error}"
    finally:
        module.train(training)


def _seconds(call: Callable[[], None]) -> float:
    """Return the shorter of two calls' times, after a first one that is not counted."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        if times[0] > SECONDS:
            return times[0]
    return min(times[1:])
