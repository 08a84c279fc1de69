"""Means and standard deviations of the training part, which inputs and targets are normalised with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itwinai_drought.data.splits import Period
from itwinai_drought.data.store import GridStore


@dataclass(frozen=True)
class Statistics:
    """What normalises variables, in the order of their names in the config.

    Args:
        forcings: means and standard deviations, shape (2, forcings).
        statics: the same of the static maps.
        targets: the same of the targets.
    """

    forcings: NDArray[np.float32]
    statics: NDArray[np.float32]
    targets: NDArray[np.float32]


def training_statistics(
    store: GridStore,
    forcings: Sequence[str],
    statics: Sequence[str],
    targets: Sequence[str],
    cells: NDArray[np.int64],
    period: Period,
    *,
    blocks: int,
    seed: int,
) -> Statistics:
    """Return the statistics of the cells and days that a model learns from, and of no others.

    Args:
        store: what is read, block after block, without keeping any.
        forcings: variables over time.
        statics: maps.
        targets: variables over time.
        cells: the training cells.
        period: the training days.
        blocks: most blocks that are read of each variable; of a store that has more, so many are drawn. Which ones
            depends on ``seed`` alone, so all workers compute the same.
        seed: of that draw.
    """
    mask = np.zeros(store.grid, dtype=bool)
    mask.flat[cells] = True
    maps = np.array([_moments_of(store.read_map(name)[mask]) for name in statics], dtype=np.float32)

    def over_time(names: Sequence[str]) -> NDArray[np.float32]:
        return np.array([_of_variable(store, name, mask, period, blocks, seed) for name in names], dtype=np.float32).T

    return Statistics(over_time(forcings), maps.reshape(-1, 2).T, over_time(targets))


def _of_variable(
    store: GridStore, name: str, mask: NDArray[np.bool_], period: Period, blocks: int, seed: int
) -> tuple[float, float]:
    within = []
    for days, rows, columns in store.blocks(name):
        days = slice(max(days.start, period.start), min(days.stop, period.stop))
        if days.start < days.stop and mask[rows, columns].any():
            within.append((days, rows, columns))
    if len(within) > blocks:
        chosen = np.random.default_rng(seed).choice(len(within), blocks, replace=False)
        within = [within[index] for index in sorted(chosen)]
    number, total, squares, shift = 0, 0.0, 0.0, 0.0
    for days, rows, columns in within:
        values = store.read_block(name, days, rows, columns)[:, mask[rows, columns]].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            shift = shift if number else float(values.mean())  # squares of large numbers would cancel otherwise
            number, total, squares = (
                number + len(values),
                total + (values - shift).sum(),
                squares + np.square(values - shift).sum(),
            )
    if not number:
        return 0.0, 1.0
    mean = total / number
    return mean + shift, _deviation(squares / number - mean**2)


def _moments_of(values: NDArray[np.float32]) -> tuple[float, float]:
    values = values[np.isfinite(values)].astype(np.float64)
    return (float(values.mean()), _deviation(values.var())) if len(values) else (0.0, 1.0)


def _deviation(variance: float) -> float:
    """Return a standard deviation to divide by: 1 for what does not vary."""
    return float(np.sqrt(variance)) if variance > 1e-12 else 1.0
