"""Batches of datasets in memory, fetched by one index operation per tensor instead of sample by sample."""

from __future__ import annotations

from contextlib import suppress
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from itwinai.compat import lightning_dataloaders, torch_dataloaders


def fetch_quickly(dataloader: DataLoader) -> DataLoader:
    """Return a loader that gives the same batches in less time, if it can; else the loader itself.

    Args:
        dataloader: a loader that is about to be used.
    """
    if not torch_dataloaders.is_single_process(dataloader):
        return dataloader
    return lightning_dataloaders.with_iterator(dataloader, _FetchQuickly(dataloader))


class _FetchQuickly:
    """Makes the iterators of a loader.

    Args:
        dataloader: the loader.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        self.fetches_whole = (
            dataloader.batch_sampler is not None
            and dataloader.collate_fn is default_collate
            and type(_without_subsets(dataloader.dataset)) is TensorDataset
        )

    def __call__(self, make: Any) -> Any:
        """Return an iterator.

        Args:
            make: makes the loader's own.
        """
        return torch_dataloaders.hasten(make(), WholeBatches if self.fetches_whole else None)


def _without_subsets(dataset: Any) -> Any:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


class WholeBatches:
    """Fetches the batches of a `TensorDataset`, or of subsets of it, as `default_collate` would put them together.

    Args:
        fetcher: fetches sample by sample; what this one does not know is left to it.
    """

    def __init__(self, fetcher: Any) -> None:
        self.fetcher = fetcher

    def fetch(self, indices: Any) -> Any:
        """Return the batch of these indices."""
        batch = _select(self.fetcher.dataset, indices)
        return self.fetcher.fetch(indices) if batch is None else batch


def _select(dataset: Dataset[Any], indices: Any) -> list[Tensor] | None:
    """Return the rows of all tensors; None for indices and tensors that have to be looked at one by one."""
    if type(indices) is not list:
        return None
    while type(dataset) is Subset:
        own = dataset.indices
        indices = [own[index] for index in indices]
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or not all(map(_is_integer, set(map(type, indices)))):
        return None
    if not all(map(_is_plain, dataset.tensors)):
        return None
    # Between the steps of a network little of this is in the processor's caches, and what runs less code is faster:
    # NumPy reads a list of numbers in half of torch's time, and `index_select` looks up rows in half of the time of
    # `tensor[rows]`.
    with suppress(IndexError, OverflowError, RuntimeError):  # negative, or too large
        rows = torch.from_numpy(np.array(indices, dtype=np.int64))
        on_cpu = all(tensor.device.type == "cpu" for tensor in dataset.tensors)  # as the indices of `index_select` are
        return [tensor.index_select(0, rows) if on_cpu else tensor[rows] for tensor in dataset.tensors]
    return None


def _is_integer(kind: type) -> bool:
    """Return whether values of a type are indices; a bool would be a mask."""
    return kind is int or (issubclass(kind, Integral) and kind is not bool)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether rows that are taken together are laid out as rows that are stacked."""
    return type(tensor) is Tensor and tensor.layout is torch.strided and tensor.is_contiguous()
