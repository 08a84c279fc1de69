"""What a surrogate has to beat: climatology, persistence, and a linear model with memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.spatial import cKDTree

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Climatology:
    """The mean of each day of the year, in each cell.

    Args:
        means: shape (cells, 366).
        positions: row and column of each cell, shape (cells, 2).
    """

    means: Array
    positions: NDArray[np.integer]

    @classmethod
    def fit(
        cls, values: Array, times: NDArray[np.datetime64], positions: NDArray[np.integer], smooth: int = 15
    ) -> Climatology:
        """Return the climatology of some years.

        Args:
            values: shape (cells, days); NaN where missing.
            times: the days.
            positions: row and column of each cell.
            smooth: width of the running mean over the year, in days: few years leave single days noisy.
        """
        day = _day_of_year(times)
        known = np.isfinite(values)
        sums: Array = np.zeros((len(values), 366))
        numbers: Array = np.zeros((len(values), 366))
        for number in range(366):
            here = day == number
            sums[:, number] = np.where(known[:, here], values[:, here], 0).sum(axis=1)
            numbers[:, number] = known[:, here].sum(axis=1)
        sums, numbers = (_running_sum(one, smooth) for one in (sums, numbers))
        return cls(sums / np.where(numbers > 0, numbers, np.nan), positions)

    def predict(self, times: NDArray[np.datetime64], positions: NDArray[np.integer], neighbours: int = 8) -> Array:
        """Return the climatology of days in some cells, shape (cells, days).

        A cell that was not fitted gets the mean of the nearest ones that were, weighted by inverse distance.
        """
        distance, nearest = cKDTree(self.positions).query(positions, k=min(neighbours, len(self.positions)))
        distance, nearest = distance.reshape(len(positions), -1), nearest.reshape(len(positions), -1)
        weights = 1 / np.maximum(distance, 1e-9)  # a fitted cell outweighs its neighbours by far
        weights /= weights.sum(axis=1, keepdims=True)
        means = np.einsum("cn,cnd->cd", weights, self.means[nearest])
        return means[:, _day_of_year(times)]


def persistence(values: Array, lead: int) -> Array:
    """Return the value of so many days before for each day, shape (cells, days); NaN at the beginning."""
    late = np.full(values.shape, np.nan)
    late[:, lead:] = values[:, :-lead]
    return late


@dataclass(frozen=True)
class LinearWithMemory:
    """Ridge regression on what the weather was over several time scales, on static maps, and on the season.

    Each forcing enters as it is and as exponentially weighted means of the days until then: what a chain of linear
    reservoirs remembers. Statics enter by themselves and multiplied with each of these, so that soils may respond
    differently.

    Args:
        weights: shape (features + 1, targets).
        mean: of the features.
        deviation: of the features.
        scales: the time scales, in days.
    """

    weights: Array
    mean: Array
    deviation: Array
    scales: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        forcings: Array,
        statics: Array,
        times: NDArray[np.datetime64],
        targets: Array,
        *,
        warm_up: int,
        scales: Sequence[float] = (3, 10, 30, 90, 180),
        ridge: float = 1e-3,
        every: int = 7,
    ) -> LinearWithMemory:
        """Return the regression of targets on features.

        Args:
            forcings: shape (forcings, cells, days), without missing values.
            statics: shape (statics, cells).
            times: the days.
            targets: shape (targets, cells, days); days with NaN are left out.
            warm_up: first days that are not fitted.
            scales: time scales of the weighted means, in days.
            ridge: penalty, relative to the number of days.
            every: only each so many days are fitted, as successive ones tell nearly the same.
        """
        chosen = slice(warm_up, None, every)
        features = _features(forcings, statics, times, tuple(scales), chosen)
        truth = targets[:, :, chosen].reshape(len(targets), -1).T
        known = np.isfinite(truth).all(axis=1)
        features, truth = features[known], truth[known]
        mean, deviation = features.mean(axis=0), features.std(axis=0)
        deviation = np.where(deviation > 1e-9, deviation, 1)
        design = _design(features, mean, deviation)
        penalty = ridge * len(design) * np.eye(design.shape[1])
        penalty[0, 0] = 0  # not of the intercept
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ truth)
        return cls(weights, mean, deviation, tuple(scales))

    def predict(self, forcings: Array, statics: Array, times: NDArray[np.datetime64]) -> Array:
        """Return predictions of shape (targets, cells, days)."""
        result = np.empty((self.weights.shape[1], *forcings.shape[1:]))
        for cell in range(forcings.shape[1]):
            features = _features(forcings[:, [cell]], statics[:, [cell]], times, self.scales, slice(None))
            result[:, cell] = (_design(features, self.mean, self.deviation) @ self.weights).T
        return result


def _features(
    forcings: Array, statics: Array, times: NDArray[np.datetime64], scales: tuple[float, ...], days: slice
) -> Array:
    """Return the features of each cell and day, shape (cells * days, features)."""
    filtered = [forcings[:, :, days]]
    for scale in scales:
        kept = np.exp(-1 / scale)
        begun = forcings[:, :, : int(scale) + 1].mean(axis=2, keepdims=True)  # as if it had been like that before
        mean, _ = lfilter([1 - kept], [1, -kept], forcings, axis=2, zi=kept * begun)
        filtered.append(mean[:, :, days])
    weather = np.concatenate(filtered)
    cells, length = weather.shape[1:]
    angle = 2 * np.pi * _day_of_year(times)[days] / 365.25
    season = np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)])
    maps = np.broadcast_to(statics[:, :, None], (len(statics), cells, length))
    products = (maps[:, None] * weather[None]).reshape(-1, cells, length)
    seasons = np.broadcast_to(season[:, None], (4, cells, length))
    return np.concatenate([weather, maps, products, seasons]).reshape(-1, cells * length).T


def _design(features: Array, mean: Array, deviation: Array) -> Array:
    return np.column_stack([np.ones(len(features)), (features - mean) / deviation])


def _day_of_year(times: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Return the day of the year of each day, from 0; the 366th is that of leap years."""
    days = times.astype("M8[D]")
    return (days - days.astype("M8[Y]").astype("M8[D]")).astype(np.int64)


def _running_sum(values: Array, width: int) -> Array:
    """Return sums over a window of days around each, where the year is a circle."""
    half = width // 2
    padded = np.concatenate([values[:, -half:], values, values[:, :half]], axis=1) if half else values
    sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0))), axis=1)
    return sums[:, 2 * half + 1 :] - sums[:, : -2 * half - 1]
