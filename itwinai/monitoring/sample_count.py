"""How many samples a fit has trained with, told from its loader when it has ended: no step has to count them."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader

from itwinai.data.samplers import DistributedBatchSampler


def trained_samples(loaders: Sequence[Any], workers: int, batches: float, begun: int, done: int) -> int | None:
    """Return the number of samples that all workers together have trained with, or None if that cannot be told.

    Every epoch has the same number; the last batch of an epoch may be smaller than the others.

    Args:
        loaders: that were trained with.
        workers: their number.
        batches: of one worker in an epoch; infinite if unknown.
        begun: how many of the first epoch were done before, by a run that this one resumes from.
        done: how many this worker has done.
    """
    if len(loaders) != 1 or (global_batch := _global_batch(loaders[0], workers)) is None:
        return None
    if math.isinf(batches) or batches <= 0:
        return done * global_batch
    most = int(batches) * global_batch
    if (samples := _samples(loaders[0])) is not None:
        most = min(most, samples)

    def until(batch: int) -> int:
        epochs, rest = divmod(batch, int(batches))
        return epochs * most + min(rest * global_batch, most)

    return until(begun + done) - until(begun)


def why_unknown(loaders: Sequence[Any]) -> str:
    """Return why `trained_samples` cannot tell the number of samples, for people.

    Args:
        loaders: that were trained with.
    """
    if not loaders:
        return "there was no training loader"
    if len(loaders) > 1:
        return f"a batch comes from {len(loaders)} loaders"
    loader = loaders[0]
    if not isinstance(loader, DataLoader):
        return f"the loader, of class {type(loader).__name__}, has no batch_size"
    if loader.batch_sampler is None:
        return "the DataLoader has batch_size=None, and only the data set knows how many samples are in its batches"
    return f"the loader's batch sampler, of class {type(loader.batch_sampler).__name__}, has no batch_size"


def batch_size_of(loader: Any, workers: int) -> int | None:
    """Return the number of samples in a batch of one worker, or None if that cannot be told."""
    size = _global_batch(loader, workers)
    return None if size is None else size // workers


def _global_batch(loader: Any, workers: int) -> int | None:
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, DistributedBatchSampler):
        return sampler.global_batch
    size = getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None)
    return size * workers if isinstance(size, int) else None


def _samples(loader: Any) -> int | None:
    """Return the number of samples in an epoch of all workers, where a sampler of torch's kind tells it."""
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, DistributedBatchSampler):
        batches = batches.batches
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, Sized):
        return None
    try:
        return len(sampler) * getattr(sampler, "num_replicas", 1)
    except (TypeError, NotImplementedError):  # that of a dataset without a length
        return None
