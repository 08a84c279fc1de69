"""The iterator of a DataLoader without processes: how it fetches a batch."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _DatasetKind, _SingleProcessDataLoaderIter

from itwinai.compat.torch import is_profiling


class _PlainIterator(_SingleProcessDataLoaderIter):
    """Opens a span of torch's profiler only where a profiler records: it takes longer than to fetch some batches."""

    def __next__(self) -> Any:
        if is_profiling() or self._sampler_iter is None:
            return super().__next__()
        data = self._next_data()
        self._num_yielded += 1
        return data


def is_single_process(dataloader: DataLoader) -> bool:
    """Return whether a loader is torch's own, of a map-style dataset, and fetches in this process."""
    return (
        type(dataloader) is DataLoader
        and not dataloader.num_workers
        and dataloader._dataset_kind == _DatasetKind.Map
        and "_get_iterator" not in vars(dataloader)
    )


def hasten(iterator: Any, fetcher_class: Any = None) -> Any:
    """Let the iterator of a loader that fetches in this process do so the short way; return it.

    Args:
        iterator: the iterator.
        fetcher_class: is called with what fetches for it so far, and returns what fetches from now on.
    """
    if type(iterator) is _SingleProcessDataLoaderIter:
        iterator.__class__ = _PlainIterator
        if fetcher_class is not None:
            iterator._dataset_fetcher = fetcher_class(iterator._dataset_fetcher)
    return iterator
