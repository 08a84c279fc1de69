"""Samples a node in a thread of its own, and counts what that costs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from itwinai.monitoring.energy import EnergySource, EnergyUse, Meter
from itwinai.monitoring.gauges import Gauges, Instruments
from itwinai.monitoring.time_series import Quantity, Recorder

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds to wait for the last sample at the end: a driver that hangs must not keep the run from ending."""


@dataclass(frozen=True)
class SamplingCost:
    """What sampling has cost.

    Attributes:
        samples: how often was sampled.
        cpu_seconds: processor time of the samples.
        opening_seconds: processor time of finding and opening what to sample.
        seconds: its duration.
    """

    samples: int
    cpu_seconds: float
    opening_seconds: float
    seconds: float

    @property
    def seconds_per_sample(self) -> float:
        """Processor time of one sample."""
        return self.cpu_seconds / max(self.samples, 1)

    @property
    def share(self) -> float:
        """Part of one core that sampling has taken, opening included."""
        return (self.cpu_seconds + self.opening_seconds) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Sampled:
    """What was sampled on one node.

    Attributes:
        quantities: by name, like ``"cpu_percent"`` or ``"gpu0_power_w"``.
        energy: of every source that could be measured.
        missing: reason by quantity, of what could not be measured, or not to the end.
        facts: about the node.
        cost: what sampling has cost.
    """

    quantities: Mapping[str, Quantity]
    energy: Sequence[EnergyUse]
    missing: Mapping[str, str]
    facts: Mapping[str, str]
    cost: SamplingCost


class Sampler:
    """Samples in a daemon thread, from `start` to `stop`.

    Args:
        openers: each finds what can be sampled of something; called in the thread, as drivers may take their time.
        interval: seconds between two samples.
        where: name of the node, for the log.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Instruments]], interval: float, where: str) -> None:
        self._openers = dict(openers)
        self._interval = interval
        self._where = where
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="itwinai-system-monitor", daemon=True)
        self._recorder = Recorder(time.monotonic())
        self._gauges = Gauges((), {}, where)
        self._sources: list[EnergySource] = []
        self._meters: dict[str, Meter] = {}
        self._facts: dict[str, str] = {}
        self._samples = 0
        self._cpu_seconds = self._opening_seconds = 0.0
        self._seconds = 0.0

    @property
    def recorder(self) -> Recorder:
        """What was sampled until now."""
        return self._recorder

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        if self._end.is_set() or not self._thread.is_alive():
            return
        self._end.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._fail(f"the last sample did not come within {PATIENCE:.0f} s")

    def sampled(self) -> Sampled:
        """Return the samples until now."""
        uses = [use for source in self._sources if (use := source.use()) is not None]
        seconds = self._seconds or time.monotonic() - self._recorder.began
        return Sampled(
            quantities=self._recorder.quantities(),
            energy=uses,
            missing=dict(self._gauges.missing),
            facts=dict(self._facts),
            cost=SamplingCost(self._samples, self._cpu_seconds, self._opening_seconds, seconds),
        )

    def _run(self) -> None:
        instruments: list[Instruments] = []
        try:
            instruments = self._open()
            self._sample(everything=True)
            while not self._end.wait(self._interval):
                self._sample()
            self._sample(everything=True)
        except Exception as error:  # ours or a library's: the run is worth more than being watched
            self._fail(f"{type(error).__name__}: {error}")
            log.warning("itwinai: %s: the system is no longer monitored", self._where, exc_info=error)
        finally:
            self._seconds = time.monotonic() - self._recorder.began
            for instrument in instruments:
                if instrument.close is not None:
                    instrument.close()

    def _open(self) -> list[Instruments]:
        before = time.thread_time()
        instruments, missing = [], {}
        for what, open_instruments in self._openers.items():
            try:
                instruments.append(open_instruments())
            except Exception as error:  # of any library: the rest can still be sampled
                missing[what] = f"{type(error).__name__}: {error}"
                log.warning("itwinai: %s: %s cannot be monitored", self._where, what, exc_info=error)
        for instrument in instruments:
            self._sources += instrument.energy
            self._facts |= instrument.facts
            missing |= instrument.missing
        self._meters = {source.quantity: source.meter for source in self._sources}
        gauges = [gauge for instrument in instruments for gauge in instrument.gauges]
        self._gauges = Gauges(gauges, missing, self._where)
        self._opening_seconds = time.thread_time() - before
        return instruments

    def _sample(self, everything: bool = False) -> None:
        before = time.thread_time()
        for quantity, value, at in self._gauges.read(everything):
            meter = self._meters.get(quantity)
            if meter is not None:
                meter.add(value, at)
            if meter is None or meter.method == "power":  # the value of a counter says nothing, only its differences do
                self._recorder.add(quantity, value, at)
        self._recorder.fresh = True
        self._samples += 1
        self._cpu_seconds += time.thread_time() - before

    def _fail(self, reason: str) -> None:
        after = time.monotonic() - self._recorder.began
        self._gauges.missing["everything"] = f"{reason}; from {after:.0f} s after the start on"
