"""What was measured of a fit on all its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itwinai.monitoring.emissions import Emissions
from itwinai.monitoring.energy import EnergyUse
from itwinai.monitoring.system_sampler import Sampled, SamplingCost
from itwinai.monitoring.time_series import Quantity


@dataclass(frozen=True)
class NodeSummary:
    """What was measured on one node.

    Attributes:
        name: of the node.
        workers: how many of the run it has.
        sampled: quantities, energy, what is missing, facts, and what sampling has cost.
    """

    name: str
    workers: int
    sampled: Sampled

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """Mean, peak and course by name, like ``"cpu_percent"`` or ``"gpu0_power_w"``."""
        return self.sampled.quantities

    @property
    def energy(self) -> Sequence[EnergyUse]:
        """The energy of every source that could be measured."""
        return self.sampled.energy

    @property
    def missing(self) -> Mapping[str, str]:
        """Reason by quantity, of what could not be measured, or not to the end."""
        return self.sampled.missing

    @property
    def cost(self) -> SamplingCost:
        """What sampling has cost."""
        return self.sampled.cost

    def of_gpus(self, what: str) -> dict[str, Quantity]:
        """Return one quantity of every GPU, like ``"utilization_percent"``, by the GPU's name."""
        return {
            name.removesuffix(f"_{what}"): quantity
            for name, quantity in self.quantities.items()
            if name.startswith("gpu") and name.endswith(f"_{what}")
        }


@dataclass(frozen=True)
class MonitorSummary:
    """What was measured of a fit.

    Attributes:
        nodes: of the run, that of rank 0 first.
        seconds: how long it was watched: from the start of the fit to the end of training, validation included.
        batches: that each worker has trained with.
        samples: that all workers together have trained with; None if that cannot be told.
        emissions: an estimate of the greenhouse gases; None if no energy was measured, or nothing can estimate it.
        missing: what is not known of the run as a whole, and why.
    """

    nodes: Sequence[NodeSummary]
    seconds: float
    batches: int
    samples: int | None
    emissions: Emissions | None = None
    missing: Sequence[str] = ()

    @property
    def joules(self) -> float | None:
        """The energy of all that could be measured; None if nothing could."""
        uses = [use.joules for node in self.nodes for use in node.energy]
        return sum(uses) if uses else None

    @property
    def joules_per_sample(self) -> float | None:
        """The energy of one sample, validation included; None if it is not known."""
        return None if self.joules is None or not self.samples else self.joules / self.samples

    @property
    def joules_per_batch(self) -> float | None:
        """The energy of one batch of all workers, validation included; None if it is not known."""
        return None if self.joules is None or not self.batches else self.joules / self.batches
