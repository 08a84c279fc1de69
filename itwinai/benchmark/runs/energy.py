"""The energy that a node uses while steps are measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from itwinai.monitoring.gpus import gpus_of
from itwinai.monitoring.node_topology import Node
from itwinai.monitoring.rapl import rapl_instruments
from itwinai.monitoring.system_sampler import Sampler

if TYPE_CHECKING:
    from itwinai.monitoring.gauges import Instruments

ENERGY_EVERY = 0.1
"""Seconds between two readings of energy. Only these are sampled, which takes far less than a thousandth of a core."""


class Energy:
    """The energy that a node uses between two moments.

    Args:
        node: the node, which this process measures.
    """

    def __init__(self, node: Node) -> None:
        openers: dict[str, Callable[[], Instruments]] = {
            "energy of the processors": rapl_instruments,
            "GPUs": functools.partial(gpus_of, node),
        }
        self._sampler = Sampler(openers, ENERGY_EVERY, node.name)
        self._sampler.start()
        self._before: dict[str, tuple[float, float]] = {}
        self._after: dict[str, tuple[float, float]] = {}

    def begin(self) -> None:
        """Note where the meters stand at the first moment."""
        self._before = self._read()

    def end(self) -> None:
        """Note where they stand at the second."""
        self._after = self._read()

    def stop(self) -> None:
        """End sampling."""
        self._sampler.stop()

    def watts(self) -> dict[str, float]:
        """Return the mean power by source between the two moments, of those that could be read in between."""
        watts = {}
        for name, (joules, seconds) in (self._after or self._read()).items():
            joules_before, seconds_before = self._before.get(name, (0.0, 0.0))
            if seconds > seconds_before:
                watts[name] = (joules - joules_before) / (seconds - seconds_before)
        return watts

    def missing(self) -> tuple[str, ...]:
        """Return what could not be measured, and why."""
        return tuple(f"{what}: {reason}" for what, reason in self._sampler.sampled().missing.items())

    def _read(self) -> dict[str, tuple[float, float]]:
        return {use.source: (use.joules, use.seconds) for use in self._sampler.sampled().energy}
