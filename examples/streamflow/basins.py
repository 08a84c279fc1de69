"""Weather and discharge of imagined river basins: what an archive of observations would hold, without a download.

The discharge comes from a conceptual model after HBV (Bergström, 1976: Development and application of a conceptual
runoff model for Scandinavian catchments, SMHI RHO 7): snow that melts by degree-days, a soil that passes on the more
water the wetter it is, two groundwater stores, and a river that delays and spreads what they release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

YEAR = 365  # days; leap years are left out
SPIN_UP = 2 * YEAR  # until snow, soil and groundwater have forgotten that they have begun empty
ROUTING_DAYS = 6  # no basin delays water by more

# Range of each parameter over the basins, as calibrated ones have it (Seibert, 1999: Regionalisation of parameters for
# a conceptual rainfall-runoff model, Agricultural and Forest Meteorology 98-99). Drawn evenly on a logarithmic scale.
RANGES = {
    "field_capacity": (100.0, 300.0),  # mm of water that the soil holds
    "wetness_exponent": (1.0, 3.0),  # how much wetter soil passes on more
    "melt": (2.0, 5.0),  # mm of snow per day and degree above zero
    "threshold": (10.0, 30.0),  # mm in the upper store above which water runs off fast
    "fast": (0.2, 0.4),  # share of the upper store, beyond the threshold, that runs off per day
    "medium": (0.05, 0.15),  # share of the upper store
    "percolation": (0.5, 2.0),  # mm per day from the upper to the lower store
    "slow": (0.01, 0.05),  # share of the lower store
    "routing": (1.0, 4.0),  # days over which the river spreads the water
}
ATTRIBUTES = len(RANGES)
GAUGE_ERROR = 0.05  # standard deviation of a gauge's relative error


@dataclass(frozen=True)
class Weather:
    """Daily weather, each of shape (days, basins).

    Attributes:
        precipitation: rain and snow, in mm.
        temperature: mean of the day, in degrees Celsius.
        evaporation: that there would be if water were there (potential evaporation), in mm.
    """

    precipitation: Array
    temperature: Array
    evaporation: Array


@dataclass(frozen=True)
class Basins:
    """What is known of all basins.

    Attributes:
        weather: of each day, without the days of the spin-up.
        discharge: measured at the outlet, in mm per day over the basin, shape (days, basins).
        attributes: parameters of the basins on their logarithmic scale from 0 to 1, shape (basins, ATTRIBUTES). Of real
            basins one would know elevation, slope, soil and land cover in their place.
    """

    weather: Weather
    discharge: Array
    attributes: Array


def generate_basins(basins: int, years: int, seed: int) -> Basins:
    """Draw basins and their weather, and compute the discharge; the same numbers for the same arguments.

    Args:
        basins: number of basins.
        years: length of the record, in years of 365 days.
        seed: of everything that is drawn.
    """
    random = np.random.default_rng(seed)
    attributes = random.random((basins, ATTRIBUTES))
    low, high = np.array(list(RANGES.values())).T
    drawn = low * (high / low) ** attributes
    parameters = dict(zip(RANGES, drawn.T, strict=True))
    weather = _draw_weather(random, SPIN_UP + years * YEAR, basins)
    discharge = simulate_discharge(weather, parameters)
    discharge *= 1 + GAUGE_ERROR * random.standard_normal(discharge.shape)
    known = Weather(weather.precipitation[SPIN_UP:], weather.temperature[SPIN_UP:], weather.evaporation[SPIN_UP:])
    return Basins(known, discharge[SPIN_UP:], attributes)


def simulate_discharge(weather: Weather, parameters: Mapping[str, Array]) -> Array:
    """Compute what the weather makes of the rivers.

    Args:
        weather: of each day. Stores begin empty, and the soil half full.
        parameters: those of `RANGES`, each of shape (basins,).

    Returns:
        The discharge in mm per day, shape (days, basins).
    """
    return _route(_run_off(weather, parameters), parameters["routing"])


def _draw_weather(random: np.random.Generator, days: int, basins: int) -> Weather:
    """Draw the weather of every basin by itself, with dry and wet spells, warm and cold ones, and seasons."""
    season = np.cos(2 * np.pi * (np.arange(days)[:, None] / YEAR - 0.55))  # 1 in the midst of summer
    warmth, range_of_year = random.uniform(0, 12, basins), random.uniform(7, 13, basins)
    wetness, wet_season = random.uniform(4, 9, basins), random.uniform(-0.4, 0.4, basins)

    noise, chance = random.standard_normal((days, basins)), random.random((days, basins))
    anomaly, wet = np.zeros((days, basins)), np.zeros((days, basins), dtype=bool)
    for day in range(1, days):
        anomaly[day] = 0.8 * anomaly[day - 1] + 2.0 * noise[day]
        wet[day] = chance[day] < np.where(wet[day - 1], 0.65, 0.25)
    temperature = warmth + range_of_year * season + anomaly
    # Amounts of wet days are skewed: many small ones, few large (Richardson, 1981, Water Resources Research 17).
    amounts = random.gamma(0.8, size=(days, basins)) * wetness * (1 + wet_season * season)
    # Oudin et al. (2005, Journal of Hydrology 303): radiation at the top of the atmosphere, as mm of water that it
    # could evaporate, times temperature. The radiation is that of some 50 degrees of latitude.
    radiation = 10.5 + 6.5 * np.cos(2 * np.pi * (np.arange(days)[:, None] / YEAR - 0.47))
    return Weather(wet * amounts, temperature, radiation * np.maximum(temperature + 5, 0) / 100)


def _run_off(weather: Weather, parameters: Mapping[str, Array]) -> Array:
    """Return the water that reaches the river each day, in mm, shape (days, basins)."""
    capacity, exponent = parameters["field_capacity"], parameters["wetness_exponent"]
    days, basins = weather.precipitation.shape
    snow, upper, lower = np.zeros(basins), np.zeros(basins), np.zeros(basins)
    soil = 0.5 * capacity
    run_off = np.empty((days, basins))
    for day in range(days):
        temperature, precipitation = weather.temperature[day], weather.precipitation[day]
        snow = snow + np.where(temperature < 0, precipitation, 0)
        melted = np.minimum(snow, parameters["melt"] * np.maximum(temperature, 0))
        snow = snow - melted
        water = melted + np.where(temperature < 0, 0, precipitation)

        passed_on = water * (soil / capacity) ** exponent
        soil = soil + water - passed_on
        passed_on = passed_on + np.maximum(soil - capacity, 0)
        soil = np.minimum(soil, capacity)
        soil = soil - np.minimum(soil, weather.evaporation[day] * np.minimum(soil / (0.7 * capacity), 1))

        upper = upper + passed_on
        down = np.minimum(upper, parameters["percolation"])
        upper = upper - down
        fast = parameters["fast"] * np.maximum(upper - parameters["threshold"], 0)
        medium = parameters["medium"] * upper
        upper = upper - fast - medium
        lower = lower + down
        slow = parameters["slow"] * lower
        lower = lower - slow
        run_off[day] = fast + medium + slow
    return run_off


def _route(run_off: Array, duration: Array) -> Array:
    """Spread the water of each day over the days that follow, by a triangle of so many days."""
    middle = np.arange(ROUTING_DAYS)[:, None] + 0.5
    weights = np.maximum(duration / 2 + 0.5 - np.abs(middle - duration / 2), 0)
    weights /= weights.sum(axis=0)
    routed = np.zeros_like(run_off)
    for delay in range(ROUTING_DAYS):
        routed[delay:] += weights[delay] * run_off[: len(run_off) - delay]
    return routed
