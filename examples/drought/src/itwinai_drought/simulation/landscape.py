"""`Landscape`: the maps of an invented region, from which soils and slopes of each cell follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.random_field import RandomField

Array = NDArray[np.float64]

_LENGTHS = {"elevation": 35.0, "lake": 6.0, "sand": 15.0, "clay": 25.0, "thickness": 10.0, "roots": 20.0}  # km
_LOWEST, _HIGHEST = 150.0, 2300.0  # m
_LAKES = 0.04  # share of the cells


@dataclass(frozen=True)
class Maps:
    """Static maps of a block, each of shape (cells,). They are all that tells one cell of the model from another.

    Attributes:
        elevation: in m.
        slope: rise per distance.
        theta_s: water content of saturated soil, in m3/m3.
        theta_r: residual water content, in m3/m3.
        k_sat: vertical hydraulic conductivity of saturated soil at the surface, in mm/day.
        c: Brooks-Corey exponent of the conductivity of unsaturated soil.
        rooting_depth: thickness of the upper soil layer, in mm.
        soil_thickness: thickness of both soil layers, in mm.
        lake: whether a cell is water, for which nothing is computed.
    """

    elevation: Array
    slope: Array
    theta_s: Array
    theta_r: Array
    k_sat: Array
    c: Array
    rooting_depth: Array
    soil_thickness: Array
    lake: NDArray[np.bool_]


class Landscape:
    """Draw hills, soils and lakes that vary smoothly in space.

    Hydraulic properties follow from the texture of the soil by the regressions of Cosby et al. (1984, Water Resources
    Research 20), as the Community Land Model has them (Oleson et al., 2013, NCAR/TN-503, section 7.4): saturated water
    content and conductivity from sand, and from clay the exponent b of the retention curve, of which c = 2 b + 3
    (Campbell, 1974, Soil Science 117). The residual water content rises with clay over the range of the texture classes
    of Schaap et al. (2001, Journal of Hydrology 251). Soils are thinner on slopes.

    Args:
        grid: of the region.
        seed: of everything that is drawn.
    """

    def __init__(self, grid: Grid, seed: int) -> None:
        self._grid = grid
        random = np.random.default_rng([seed, 0])
        self._fields = {name: RandomField(random, length) for name, length in _LENGTHS.items()}
        self._amplitudes = {name: random.standard_normal(RandomField.AMPLITUDES) for name in _LENGTHS}

    def maps(self, block: Block) -> Maps:
        """Return the maps of a block."""
        x, y, _ = self._grid.places(block)
        drawn = {name: ndtr(self._amplitudes[name] @ field.waves(x, y)) for name, field in self._fields.items()}
        elevation = _LOWEST + (_HIGHEST - _LOWEST) * drawn["elevation"] ** 2
        slope = self._slope(x, y)
        sand = 15 + 70 * drawn["sand"]  # per cent
        clay = (100 - sand) * (0.15 + 0.5 * drawn["clay"])
        soil_thickness = 500 + 1500 * drawn["thickness"] / (1 + 5 * slope)
        return Maps(
            elevation=elevation,
            slope=slope,
            theta_s=0.489 - 0.00126 * sand,
            theta_r=0.045 + 0.001 * clay,
            k_sat=0.0070556 * 86400 * 10 ** (-0.884 + 0.0153 * sand),
            c=2 * (2.91 + 0.159 * clay) + 3,
            rooting_depth=np.minimum(200 + 500 * drawn["roots"], 0.6 * soil_thickness),
            soil_thickness=soil_thickness,
            lake=drawn["lake"] < _LAKES,
        )

    def _slope(self, x: Array, y: Array) -> Array:
        field, amplitudes = self._fields["elevation"], self._amplitudes["elevation"]
        value = amplitudes @ field.waves(x, y)
        density = np.exp(-(value**2) / 2) / np.sqrt(2 * np.pi)
        rise = (_HIGHEST - _LOWEST) * 2 * ndtr(value) * density / 1000  # m per km of the field, as m per m
        east, north = (amplitudes @ one for one in field.slopes(x, y))
        return rise * np.hypot(east, north)
