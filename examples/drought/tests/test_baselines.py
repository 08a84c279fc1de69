"""Baselines are as strong as they should be: what they can represent they find."""

from __future__ import annotations

import numpy as np
import pytest
from itwinai_drought.baselines import Climatology, LinearWithMemory, persistence

TIMES = np.arange("2001-01-01", "2007-01-01", dtype="M8[D]")
DAY = (TIMES - TIMES.astype("M8[Y]").astype("M8[D]")).astype(int)


def test_climatology_finds_the_season_and_takes_it_from_neighbours() -> None:
    positions = np.array([[0, 0], [0, 2], [9, 9]])
    season = np.cos(2 * np.pi * DAY / 366)
    values = np.stack([season, 3 * season, 100 + 0 * season])
    values[0, 40:60] = np.nan
    climatology = Climatology.fit(values, TIMES, positions, smooth=1)
    whole = climatology.predict(TIMES, positions)
    np.testing.assert_allclose(whole, np.stack([season, 3 * season, 100 + 0 * season]), atol=1e-6)
    between = climatology.predict(TIMES, np.array([[0, 1]]), neighbours=2)
    np.testing.assert_allclose(between[0], 2 * season, atol=1e-6)
    smooth = Climatology.fit(values, TIMES, positions, smooth=31).means
    assert np.abs(smooth[1] - 3 * np.cos(2 * np.pi * np.arange(366) / 366)).max() < 0.1


def test_persistence_is_what_was_before() -> None:
    values = np.arange(12.0).reshape(2, 6)
    expected = [[np.nan, np.nan, 0, 1, 2, 3], [np.nan, np.nan, 6, 7, 8, 9]]
    np.testing.assert_array_equal(persistence(values, 2), expected)


def test_linear_model_recovers_reservoirs_whose_response_differs_by_map() -> None:
    random = np.random.default_rng(0)
    forcings = random.gamma(0.5, 4, (2, 5, len(TIMES)))
    statics = random.normal(size=(1, 5))
    water = np.zeros((5, len(TIMES)))
    for day in range(1, len(TIMES)):
        water[:, day] = np.exp(-1 / 30) * water[:, day - 1] + (1 - np.exp(-1 / 30)) * forcings[0, :, day]
    targets = np.stack([(2 + statics[0, :, None]) * water, 5 - forcings[1]])
    fitted = LinearWithMemory.fit(
        forcings[:, :3, :1500], statics[:, :3], TIMES[:1500], targets[:, :3, :1500], warm_up=300, ridge=1e-8
    )
    predicted = fitted.predict(forcings, statics, TIMES)
    errors = (predicted - targets)[:, :, 1500:]  # in years, and for two cells, that it has not seen
    variance = targets[:, :, 1500:].var(axis=2)
    assert 1 - (np.square(errors).mean(axis=2) / variance).max() == pytest.approx(1, abs=1e-4)
