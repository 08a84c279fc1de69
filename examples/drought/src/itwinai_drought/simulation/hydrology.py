"""The hydrological model: what snow, soil and groundwater of a cell make of its weather.

A conceptual model, computed for all cells at once and for each by itself; no water flows between cells. It is made of
parts of two models that are in use:

* **HBV** (Bergström, 1976, SMHI RHO 7; Lindström et al., 1997, Journal of Hydrology 201): snow that melts by
  degree-days and holds melt water, a share of the rain that runs off at once and grows with the wetness of the soil,
  and an upper and a lower groundwater store that empty to the river.
* **SBM** (Vertessy and Elsenbeer, 1999, Water Resources Research 35), the soil of Wflow (van Verseveld et al., 2024,
  Geoscientific Model Development 17): layers between the saturated and the residual water content, which drain by
  gravity with the conductivity of Brooks and Corey (1964), K_sat (S / S_max)^c, where K_sat falls exponentially with
  depth.

It is simpler than Wflow SBM: two soil layers, no interception, no capillary rise, no water table in the soil, no river
network. Evaporation takes PET from the layers as long as they are moist, and falls to none at the wilting point.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from itwinai_drought.simulation.landscape import Maps
from itwinai_drought.simulation.weather import Weather

Array = NDArray[np.float64]

SUBSTEPS = 8
"""Steps of the soil per day. Rain, drainage and evaporation act one after the other in each, which is right for short
steps only: against steps of 15 minutes, the water content of a day is wrong by up to 0.04 m3/m3 with one step per day,
which is as much as soil sensors are wrong, and by less than 0.01 with 8. A test checks both."""

# Snow, values of Lindström et al. (1997) and Seibert (1997, Nordic Hydrology 28).
_SNOW_BELOW, _RAIN_ABOVE = -1.0, 1.0  # degrees; between them precipitation is a mixture
_MELT = 3.5  # mm per day and degree above zero
_REFREEZING = 0.05  # of the melt's rate, below zero
_WATER_IN_SNOW = 0.1  # share of the snow that holds as liquid water

# Soil.
_DECAY = 0.001  # 1/mm, of the conductivity with depth
_RUNOFF_EXPONENT = 4.0  # of the saturation, of which the share of the rain that runs off follows
_ROOTS = 0.75  # share of the evaporation that the upper layer provides
_AIR_ENTRY, _STRESS, _WILTING = 0.25, 5.0, 150.0  # m of suction, of which the moisture follows (Campbell, 1974)

# Groundwater.
_PERCOLATION = 1.5  # mm/day from the upper to the lower store
_SLOW = 0.015  # 1/day, of the lower store
_FLAT, _STEEP, _HALF = 0.08, 0.3, 0.1  # 1/day of the upper store: on flat ground, added on slopes, half of it at 0.1


@dataclass
class State:
    """Water in each cell, in mm, shape (cells,).

    Attributes:
        snow: frozen.
        melt: liquid water in the snow.
        upper_soil: above the residual water content, in the root zone.
        lower_soil: above the residual water content, below the root zone.
        upper_ground: groundwater that reaches the river in days.
        lower_ground: groundwater that reaches it in months.
    """

    snow: Array
    melt: Array
    upper_soil: Array
    lower_soil: Array
    upper_ground: Array
    lower_ground: Array

    def total(self) -> Array:
        """Return all the water of each cell, in mm."""
        return np.sum([getattr(self, field.name) for field in fields(self)], axis=0)


@dataclass(frozen=True)
class Water:
    """What the model computes, each of shape (days, cells).

    Attributes:
        vwc: volumetric water content of the root zone at the end of the day, in m3/m3.
        actevap: actual evaporation, in mm/day.
        q: runoff to the river, in mm/day.
    """

    vwc: Array
    actevap: Array
    q: Array


class HydrologicalModel:
    """The model of a number of cells.

    Args:
        maps: of these cells.
        substeps: steps of the soil per day.
    """

    def __init__(self, maps: Maps, substeps: int = SUBSTEPS) -> None:
        self.substeps = substeps
        self._theta_r, self._depth = maps.theta_r, maps.rooting_depth
        porosity = maps.theta_s - maps.theta_r
        self._upper_room = porosity * maps.rooting_depth
        self._lower_room = porosity * (maps.soil_thickness - maps.rooting_depth)
        self._k_surface = maps.k_sat
        self._less = maps.c - 1
        self._power = -1 / self._less
        per_step = self._less * maps.k_sat / substeps
        self._upper_rate = per_step * np.exp(-_DECAY * maps.rooting_depth) / self._upper_room
        self._lower_rate = per_step * np.exp(-_DECAY * maps.soil_thickness) / self._lower_room
        per_b = 2 / (maps.c - 3)
        self._wilting = (_AIR_ENTRY / _WILTING) ** per_b
        self._moist = (_AIR_ENTRY / _STRESS) ** per_b - self._wilting
        self._slow = 1 - np.exp(-_SLOW)
        self._fast = 1 - np.exp(-(_FLAT + _STEEP * maps.slope / (maps.slope + _HALF)))

    def start(self) -> State:
        """Return a state without snow, with moist soil, from which a spin-up of some years can begin."""
        none = np.zeros_like(self._depth)
        return State(
            snow=none,
            melt=none,
            upper_soil=0.6 * self._upper_room,
            lower_soil=0.6 * self._lower_room,
            upper_ground=none,
            lower_ground=none + 30.0,
        )

    def run(self, weather: Weather, state: State) -> Water:
        """Compute some days.

        Args:
            weather: of each day.
            state: at the beginning; it is changed to that at the end.

        Returns:
            What becomes of the water. Over any time ``precip = actevap + q + change of state.total()``.
        """
        vwc, actevap, q = (np.empty_like(weather.precip) for _ in range(3))
        for day, (precip, pet, temp) in enumerate(zip(weather.precip, weather.pet, weather.temp, strict=True)):
            water = self._through_snow(state, precip, temp)
            actevap[day], recharge = self._through_soil(state, water, pet)
            q[day] = self._through_ground(state, recharge)
            vwc[day] = self._theta_r + state.upper_soil / self._depth
        return Water(vwc, actevap, q)

    @staticmethod
    def _through_snow(state: State, precip: Array, temp: Array) -> Array:
        """Return the rain and melt water that reach the ground, in mm."""
        rain = precip * np.clip((temp - _SNOW_BELOW) / (_RAIN_ABOVE - _SNOW_BELOW), 0, 1)
        snow = state.snow + (precip - rain)
        melted = np.minimum(snow, _MELT * np.maximum(temp, 0))
        frozen = np.minimum(state.melt, _REFREEZING * _MELT * np.maximum(-temp, 0))
        state.snow = snow - melted + frozen
        liquid = state.melt + melted - frozen + rain
        state.melt = np.minimum(liquid, _WATER_IN_SNOW * state.snow)
        return liquid - state.melt

    def _through_soil(self, state: State, water: Array, pet: Array) -> tuple[Array, Array]:
        """Return what evaporates, and what reaches the groundwater, in mm."""
        step = 1 / self.substeps
        water, most = water * step, self._k_surface * step
        upper_demand, lower_demand = pet * (step * _ROOTS), pet * (step * (1 - _ROOTS))
        upper, lower = state.upper_soil, state.lower_soil
        evaporated, recharge = np.zeros_like(water), np.zeros_like(water)
        for _ in range(self.substeps):
            wetness = upper / self._upper_room
            enters = np.minimum(np.minimum(water * (1 - wetness**_RUNOFF_EXPONENT), most), self._upper_room - upper)
            upper = upper + enters

            drained = np.minimum(self._drainage(upper, self._upper_room, self._upper_rate), self._lower_room - lower)
            upper = upper - drained
            lower = lower + drained
            drained = self._drainage(lower, self._lower_room, self._lower_rate)
            lower = lower - drained
            recharge += water - enters + drained

            from_upper = self._evaporation(upper, self._upper_room, upper_demand)
            from_lower = self._evaporation(lower, self._lower_room, lower_demand)
            upper = upper - from_upper
            lower = lower - from_lower
            evaporated += from_upper + from_lower
        state.upper_soil, state.lower_soil = upper, lower
        return evaporated, recharge

    def _drainage(self, content: Array, room: Array, rate: Array) -> Array:
        """Return what leaves a layer by gravity in a substep: the solution of dS/dt = -K_sat (S / S_max)^c."""
        return content * (1 - (1 + rate * (content / room) ** self._less) ** self._power)

    def _evaporation(self, content: Array, room: Array, demand: Array) -> Array:
        """Return what a layer evaporates in a substep: all that is asked for, less below a moisture, at last none."""
        moisture = (content / room - self._wilting) / self._moist
        return np.minimum(demand * np.minimum(np.maximum(moisture, 0), 1), content)

    def _through_ground(self, state: State, recharge: Array) -> Array:
        """Return what reaches the river, in mm."""
        upper = state.upper_ground + recharge
        percolated = np.minimum(upper, _PERCOLATION)
        upper = upper - percolated
        lower = state.lower_ground + percolated
        fast, slow = upper * self._fast, lower * self._slow
        state.upper_ground, state.lower_ground = upper - fast, lower - slow
        return fast + slow
