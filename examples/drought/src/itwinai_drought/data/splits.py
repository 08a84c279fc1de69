"""Which days and which cells a model learns from, and which it never sees: disjoint by construction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Period:
    """Consecutive days of a store, as indices of its time axis.

    Args:
        start: the first day.
        stop: the day after the last.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


def split_days(times: NDArray[np.datetime64], periods: Mapping[str, Sequence[str]]) -> dict[str, Period]:
    """Cut the time axis into periods that have no day in common.

    Windows lie in one period with all their days, those of the warm-up included: no sample of one period holds a day
    of another.

    Args:
        times: the store's days, ascending.
        periods: first and last day of each, such as ``{"train": ["2000-01-01", "2009-12-31"], ...}``; a month or a
            year stands for all its days.

    Raises:
        ConfigurationError: two periods have a day in common, or one has none in the store.
    """
    found = {}
    for name, ends in periods.items():
        if len(ends) != 2:
            raise ConfigurationError(f"The period '{name}' needs a first and a last day; got {list(ends)}.")
        first, last = (_date(name, end) for end in ends)
        # What was given as "2009" ends with the last day of that year.
        start, stop = np.searchsorted(times, [first.astype("M8[ns]"), (last + 1).astype("M8[ns]")])
        found[name] = Period(int(start), int(stop))
        if not len(found[name]):
            raise ConfigurationError(
                f"The period '{name}', {ends[0]} to {ends[1]}, has no day in the store, which has "
                f"{_day(times[0])} to {_day(times[-1])}."
            )
    check_disjoint_periods(found, times)
    return found


def check_disjoint_periods(periods: Mapping[str, Period], times: NDArray[np.datetime64]) -> None:
    """Raise an error if two periods have a day in common.

    Raises:
        ConfigurationError: they have.
    """
    for (one, a), (other, b) in itertools.combinations(periods.items(), 2):
        start, stop = max(a.start, b.start), min(a.stop, b.stop)
        if start < stop:
            raise ConfigurationError(
                f"The periods '{one}' and '{other}' overlap: both have the days {_day(times[start])} to "
                f"{_day(times[stop - 1])}, so '{other}' would be evaluated on what '{one}' has seen. Let one begin "
                "after the other has ended."
            )


def split_cells(
    valid: NDArray[np.bool_], fractions: Mapping[str, float], block: int, buffer: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Divide the cells of a grid among training, validation and test, in square blocks.

    Neighbouring cells have nearly the same weather and soil: drawn one by one, each held-out cell would have its twin
    in the training part. So blocks are drawn (Roberts et al., 2017, Ecography 40, 913-929), and around those that are
    held out a border is left out of training.

    Args:
        valid: which cells have data, shape (lat, lon).
        fractions: part of the blocks for ``val`` and ``test``; the rest is for training.
        block: side of a block, in cells.
        buffer: width of the border, in cells; 0 for none.
        seed: of the draw.

    Returns:
        The numbers of the cells of each part, counted by rows.

    Raises:
        ConfigurationError: a part would have no cells.
    """
    height, width = valid.shape
    columns = -(-width // block)
    of_cell = np.arange(height)[:, None] // block * columns + np.arange(width)[None, :] // block
    blocks = np.random.default_rng(seed).permutation(np.unique(of_cell[valid]))
    numbers = {name: round(fractions.get(name, 0.0) * len(blocks)) for name in ("val", "test")}
    held_out, parts = 0, {}
    for name, number in numbers.items():
        parts[name] = np.isin(of_cell, blocks[held_out : held_out + number])
        held_out += number
    near = _within(parts["val"] | parts["test"], buffer)
    parts["train"] = ~near
    cells = {name: np.flatnonzero(parts[name] & valid) for name in PARTS}
    for name in PARTS:
        if not len(cells[name]) and (name == "train" or fractions.get(name)):
            raise ConfigurationError(
                f"No cells are left for '{name}': {len(blocks)} blocks of {block} x {block} cells, of which "
                f"{numbers['val']} are for val and {numbers['test']} for test, with a border of {buffer}. Use smaller "
                f"blocks, a smaller border, or other fractions than {dict(fractions)}."
            )
    check_disjoint_cells(cells)
    return cells


def check_disjoint_cells(cells: Mapping[str, NDArray[np.int64]]) -> None:
    """Raise an error if two parts have a cell in common.

    Raises:
        ConfigurationError: they have.
    """
    for (one, a), (other, b) in itertools.combinations(cells.items(), 2):
        if len(common := np.intersect1d(a, b)):
            raise ConfigurationError(
                f"The parts '{one}' and '{other}' have {len(common)} cells in common, such as {common[:3].tolist()}: "
                f"'{other}' would be evaluated on what '{one}' has seen. Give each cell to one part."
            )


def _within(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return the cells that are in a mask, or at most so far from it, diagonals included."""
    near = mask
    for axis in (0, 1):
        lengths = [(distance, distance) if one == axis else (0, 0) for one in (0, 1)]
        padded = np.pad(near, lengths)
        size = near.shape[axis]
        shifted = [np.take(padded, range(shift, shift + size), axis) for shift in range(2 * distance + 1)]
        near = np.logical_or.reduce(shifted)
    return near


def _date(period: str, text: str) -> np.datetime64:
    try:
        return np.datetime64(str(text))
    except ValueError:
        raise ConfigurationError(f"The period '{period}' has '{text}', which is no date such as 2000-12-31.") from None


def _day(time: np.datetime64) -> str:
    return str(time.astype("M8[D]"))
