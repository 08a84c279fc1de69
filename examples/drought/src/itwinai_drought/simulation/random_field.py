"""`RandomField`: a Gaussian random field that can be evaluated at any place, without a grid of the whole region."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MODES = 64
_SMOOTHNESS = 1.5


class RandomField:
    """A stationary Gaussian field of mean 0 and variance 1, as a sum of plane waves (the spectral method).

    The wave numbers are drawn from the spectral density of the Matérn covariance (smoothness 3/2), so that amplitudes
    that are independent normal numbers give a field of this covariance, up to the error of a finite number of waves.
    Each block of cells is a product of its waves with the same amplitudes: neighbouring blocks fit together, and memory
    does not grow with the region. Sources: Shinozuka and Jan (1972, Journal of Sound and Vibration 25), Mantoglou and
    Wilson (1982, Water Resources Research 18), Rasmussen and Williams (2006, Gaussian Processes for Machine Learning,
    section 4.2).

    Args:
        random: generator of the wave numbers.
        length: correlation length in km.
    """

    AMPLITUDES = 2 * _MODES  # a cosine and a sine for each wave

    def __init__(self, random: np.random.Generator, length: float) -> None:
        direction = random.standard_normal((2, _MODES))
        self._numbers = direction * np.sqrt(2 * _SMOOTHNESS / random.chisquare(2 * _SMOOTHNESS, _MODES)) / length

    def waves(self, x: Array, y: Array) -> Array:
        """Return the waves at given places, to be multiplied with amplitudes.

        Args:
            x: eastward coordinate of each cell in km, shape (cells,).
            y: northward coordinate of each cell in km, shape (cells,).

        Returns:
            Shape (AMPLITUDES, cells). ``a @ waves`` has variance 1 for standard normal ``a``.
        """
        phase = self._phase(x, y)
        return np.concatenate([np.cos(phase), np.sin(phase)]) / np.sqrt(_MODES)

    def slopes(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the derivatives of the waves to the east and to the north, per km; shapes as those of `waves`."""
        phase = self._phase(x, y)
        turned = np.concatenate([-np.sin(phase), np.cos(phase)]) / np.sqrt(_MODES)
        east, north = (np.concatenate([number, number])[:, None] for number in self._numbers)
        return east * turned, north * turned

    def _phase(self, x: Array, y: Array) -> Array:
        return self._numbers[0][:, None] * x + self._numbers[1][:, None] * y
