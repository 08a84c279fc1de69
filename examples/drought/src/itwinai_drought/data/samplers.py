"""A random order of samples that reads a store block by block, and takes part of the windows in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from itwinai.errors import ConfigurationError
from itwinai_drought.data.dataset import CellWindows

Group = tuple[NDArray[np.int64], NDArray[np.int64]]


class CellWindowSampler(Sampler[int]):
    """Draw cells and windows for an epoch, in an order that is random and yet reads each block once.

    Cells that share a block of the store, with windows that begin within the same block of days, form a group. Groups
    are shuffled, and some at a time are mixed, so that a batch holds samples of different regions and years.

    The order depends on the seed and the epoch alone: it is the same on all ranks and at every number of workers, as
    the trainer that divides it among them requires.

    Args:
        dataset: what is drawn from.
        cell_fraction: part of the cells that an epoch takes.
        window_fraction: part of the windows that an epoch takes in each of these cells (temporal down-sampling).
            Successive windows tell nearly the same, so epochs can be shorter than the data.
        mixed: how many groups are mixed. The memory for blocks should hold them, or blocks are read more than once.
        seed: of all epochs.

    Raises:
        ConfigurationError: a fraction is not above 0 and at most 1.
    """

    def __init__(
        self,
        dataset: CellWindows,
        cell_fraction: float = 1.0,
        window_fraction: float = 1.0,
        mixed: int = 64,
        seed: int = 0,
    ) -> None:
        for name, fraction in (("cell_fraction", cell_fraction), ("window_fraction", window_fraction)):
            if not 0 < fraction <= 1:
                raise ConfigurationError(f"{name} must be above 0 and at most 1; got {fraction}.", argument=name)
        self.dataset, self.mixed, self.seed, self.epoch = dataset, mixed, seed, 0
        self.cells = max(1, round(cell_fraction * len(dataset.cells)))
        self.windows = max(1, round(window_fraction * len(dataset.windows)))

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of another epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.cells * self.windows

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        places = np.sort(random.choice(len(self.dataset.cells), self.cells, replace=False))
        groups = [group for block in self._cell_blocks(places) for group in self._groups(block, random)]
        order = random.permutation(len(groups))
        for first in range(0, len(order), self.mixed):
            samples = [self._samples(groups[index]) for index in order[first : first + self.mixed]]
            yield from random.permutation(np.concatenate(samples)).tolist()

    def _cell_blocks(self, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return places among the dataset's cells, an array for each block of the store."""
        store, (_, rows, columns) = self.dataset.store, self._block_shape()
        row, column = np.divmod(self.dataset.cells[places], store.grid[1])
        return _by_key(places, row // rows * store.grid[1] + column // columns)

    def _groups(self, places: NDArray[np.int64], random: np.random.Generator) -> list[Group]:
        """Return cells with their windows, a group for each block of days; every block of cells has its own windows."""
        windows = self.dataset.windows
        drawn = np.sort(random.choice(len(windows), self.windows, replace=False))
        starts = np.array([windows.start(number) for number in drawn.tolist()])
        return [(places, numbers) for numbers in _by_key(drawn, starts // self._block_shape()[0])]

    def _samples(self, group: Group) -> NDArray[np.int64]:
        places, numbers = group
        return (places[:, None] * len(self.dataset.windows) + numbers[None, :]).reshape(-1)

    def _block_shape(self) -> tuple[int, int, int]:
        return self.dataset.store.block_shape(self.dataset.forcings[0])


def _by_key(values: NDArray[np.int64], keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return values of equal keys together, an array for each key."""
    order = np.argsort(keys, kind="stable")
    _, firsts = np.unique(keys[order], return_index=True)
    return np.split(values[order], firsts[1:])
