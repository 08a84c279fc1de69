"""`WeatherGenerator`: days of rain, temperature and potential evaporation that belong together, for any block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.landscape import Maps
from itwinai_drought.simulation.random_field import RandomField

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Process:
    """A field that changes from day to day.

    Attributes:
        length: correlation length in km.
        days: time after which the correlation with today has fallen to 1/e.
    """

    length: float
    days: float

    @property
    def memory(self) -> float:
        """Correlation of a day with the next."""
        return float(np.exp(-1 / self.days))


_PROCESSES = {
    "fronts": _Process(150, 1.5),
    "showers": _Process(20, 0.7),
    "warmth": _Process(300, 5),
    "drought": _Process(500, 300),  # of its length droughts last one to several years
}
_DRY = 0.55  # threshold that rain has to exceed; 29 per cent of the days are wet where nothing shifts it
_RAIN, _RAIN_EXPONENT = 14.0, 1.5  # mm/day
_SEASON = 0.15  # by how much the threshold is lower in summer, in which it rains most here
_DROUGHT = 0.15  # per standard deviation of the slow anomaly
_RAIN_ON_HILLS = 0.15  # per km of elevation
_LAPSE = 6.5  # degrees per km, of the standard atmosphere
_SEA_LEVEL, _PER_DEGREE, _RANGE = 12.5, -0.7, 9.5  # at 46 degrees north, per degree of latitude, half of the year's
_CHANCE, _DRY_HEAT, _RAIN_COOLS = 2.5, 0.8, 1.5  # degrees


@dataclass(frozen=True)
class Weather:
    """Daily weather, each of shape (days, cells).

    Attributes:
        precip: rain and snow, in mm/day.
        pet: potential evaporation, in mm/day.
        temp: mean temperature, in degrees Celsius.
    """

    precip: Array
    pet: Array
    temp: Array


class WeatherGenerator:
    """Draw daily weather with fronts, showers, warm and cold spells, seasons, hills, and droughts of several years.

    Rain is what a Gaussian field has above a threshold, raised to a power (Bárdossy and Plate, 1992, Water Resources
    Research 28): wet areas have dry edges, and wet and dry days come in spells because the field is autoregressive in
    time. Its threshold is higher in winter, in lowlands, and while a slow regional anomaly (autoregressive, 300 days)
    is dry; dry periods are also warmer. Potential evaporation follows from temperature and the radiation at the top of
    the atmosphere (Oudin et al., 2005, Journal of Hydrology 303; radiation after Allen et al., 1998, FAO paper 56). The
    numbers are plausible for the southern Alps, and those of no real place.

    Args:
        grid: of the region.
        seed: of everything that is drawn.
    """

    def __init__(self, grid: Grid, seed: int) -> None:
        self._grid = grid
        self._seed = seed
        random = np.random.default_rng([seed, 1])
        self._fields = {name: RandomField(random, process.length) for name, process in _PROCESSES.items()}

    def segments(
        self, block: Block, maps: Maps, time: pd.DatetimeIndex, days: int, first: int = 0
    ) -> Iterator[Weather]:
        """Yield the weather of a block, so many days at a time; whatever the block and the days, the same weather.

        Args:
            block: which cells.
            maps: of these cells.
            time: all days, without gaps.
            days: length of a segment; the last may be shorter.
            first: length of the first segment, if it is to be another.
        """
        x, y, lat = self._grid.places(block)
        waves = {name: field.waves(x, y) for name, field in self._fields.items()}
        series = {
            name: _Series(process, np.random.default_rng([self._seed, 2, place]))
            for place, (name, process) in enumerate(_PROCESSES.items())
        }
        starts = [*([0] if first else []), *range(first, len(time), days)]
        for start, end in zip(starts, [*starts[1:], len(time)], strict=True):
            drawn = {name: series[name].next_days(end - start) @ waves[name] for name in _PROCESSES}
            yield _weather(time[start:end], lat, maps, drawn)


class _Series:
    """Amplitudes of a field day by day, each an autoregressive process of variance 1."""

    def __init__(self, process: _Process, random: np.random.Generator) -> None:
        self._memory = process.memory
        self._random = random
        self._state = self._memory * random.standard_normal((1, RandomField.AMPLITUDES))

    def next_days(self, days: int) -> Array:
        """Return the next days, shape (days, amplitudes)."""
        noise = np.sqrt(1 - self._memory**2) * self._random.standard_normal((days, RandomField.AMPLITUDES))
        values, self._state = lfilter([1.0], [1.0, -self._memory], noise, axis=0, zi=self._state)
        return values


def _weather(time: pd.DatetimeIndex, lat: Array, maps: Maps, drawn: dict[str, Array]) -> Weather:
    day = time.dayofyear.to_numpy()[:, None]
    summer = np.cos(2 * np.pi * (day - 200) / 365.25) * np.sign(lat)
    height = maps.elevation / 1000

    shift = _SEASON * summer + _DROUGHT * drawn["drought"] + _RAIN_ON_HILLS * (height - 1)
    excess = np.sqrt(0.7) * drawn["fronts"] + np.sqrt(0.3) * drawn["showers"] + shift - _DRY
    precip = _RAIN * np.maximum(excess, 0) ** _RAIN_EXPONENT

    temp = _SEA_LEVEL + _PER_DEGREE * (np.abs(lat) - 46) - _LAPSE * height + _RANGE * summer
    temp = temp + _CHANCE * drawn["warmth"] - _DRY_HEAT * drawn["drought"]
    temp = temp - _RAIN_COOLS * np.maximum(summer, 0) * (excess > 0)

    pet = 0.408 * _radiation(day, lat) * np.maximum(temp + 5, 0) / 100  # 0.408 kg of water evaporate per MJ
    return Weather(precip, pet, temp)


def _radiation(day: NDArray[np.int64], lat: Array) -> Array:
    """Return the radiation at the top of the atmosphere in MJ/m2/day (Allen et al., 1998, equations 21 to 25)."""
    angle = 2 * np.pi * day / 365
    distance = 1 + 0.033 * np.cos(angle)
    declination = 0.409 * np.sin(angle - 1.39)
    latitude = np.radians(lat)
    sunset = np.arccos(np.clip(-np.tan(latitude) * np.tan(declination), -1, 1))
    height = sunset * np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.sin(sunset)
    return 24 * 60 / np.pi * 0.0820 * distance * height
