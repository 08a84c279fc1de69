"""The work of one worker in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itwinai.benchmark.records import Scaling
from itwinai.errors import ConfigurationError


@dataclass(frozen=True)
class Layer:
    """A part of a model whose gradients become ready at once.

    Attributes:
        gradient_bytes: size of its gradients.
        weight: its share of the computing time, relative to the other layers.
    """

    gradient_bytes: float
    weight: float = 1.0


@dataclass(frozen=True)
class Cores:
    """The processor cores of a node, for workers that compute on them.

    Attributes:
        number: cores of a node.
        threads: of one worker.
        communicating: the cores also move and add up the bytes, as gloo does.
    """

    number: float
    threads: int = 1
    communicating: bool = True

    def slowdown(self, workers: int) -> float:
        """Return the factor by which computing slows down if this many workers share the node: at least 1."""
        return max(1.0, workers * self.threads / self.number)

    def cost_of_hiding(self, workers: int) -> float:
        """Return the seconds of computing that one second of communication beside it costs.

        Each worker communicates with one thread, first on the cores that are idle. If all cores are busy, overlapping
        gains nothing but waiting times.
        """
        if not self.communicating:
            return 0.0
        needed = min(workers, self.number)
        spare = max(self.number - workers * self.threads, 0.0)
        return needed / self.number * max(1 - spare / needed, 0.0)


@dataclass(frozen=True)
class Workload:
    """What one worker does in a step when it trains alone: one batch.

    Attributes:
        compute: seconds of forward and backward, and of all else that is proportional to the samples.
        gradient_bytes: size of all gradients; the parameters that ZeRO gathers count as equally large.
        batch: samples; None if unknown: then any number of workers divides it evenly.
        parameters: number of trainable parameters; None if unknown: then no memory is predicted.
        optimizer: seconds of the optimizer's step; 0 if unknown and part of ``compute``.
        other: seconds that do not depend on the samples: hooks, loggers, the loop.
        variation: standard deviation of the computing time of steps, divided by its mean.
        backward_share: share of backward in ``compute``. It computes two matrix products for each one of forward
            (Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1), hence two thirds.
        layers: in the order of forward; by default gradients become ready in proportion to their bytes.
        cores: None if workers share no cores, as on GPUs.
    """

    compute: float
    gradient_bytes: float
    batch: int | None = None
    parameters: int | None = None
    optimizer: float = 0.0
    other: float = 0.0
    variation: float = 0.0
    backward_share: float = 2 / 3
    layers: tuple[Layer, ...] = ()
    cores: Cores | None = None

    def __post_init__(self) -> None:
        if not 0 < self.compute < math.inf:
            raise ConfigurationError(f"The computing time of a step must be more than 0 seconds; got {self.compute}.")
        for name in ("gradient_bytes", "optimizer", "other", "variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be 0 or more; got {getattr(self, name)}.")
        if not 0 <= self.backward_share <= 1:
            raise ConfigurationError(f"backward_share must be between 0 and 1; got {self.backward_share}.")
        if self.batch is not None and self.batch < 1:
            raise ConfigurationError(f"A batch has at least one sample; got {self.batch}.")
        total = sum(layer.gradient_bytes for layer in self.layers)
        if self.layers and not math.isclose(total, self.gradient_bytes, rel_tol=0.01):
            raise ConfigurationError(
                f"The layers have {total:.0f} bytes of gradients, but the model has {self.gradient_bytes:.0f}. Give "
                "all layers, or none."
            )
        if self.layers and not sum(layer.weight for layer in self.layers) > 0:
            raise ConfigurationError("Give at least one layer a weight of more than 0.")

    def most_workers(self, scaling: Scaling) -> float:
        """Return how many workers the batch is enough for: with strong scaling each needs at least one sample."""
        return math.inf if scaling == "weak" or self.batch is None else self.batch

    def share(self, workers: int, scaling: Scaling) -> float:
        """Return the share of the batch that the worker with the most samples has.

        Raises:
            ConfigurationError: some worker has no sample.
        """
        if scaling == "weak":
            return 1.0
        if workers > self.most_workers(scaling):
            raise ConfigurationError(
                f"A batch of {self.batch} samples cannot be divided among {workers} workers. Use fewer workers, a "
                "larger batch, or weak scaling."
            )
        return 1 / workers if self.batch is None else math.ceil(self.batch / workers) / self.batch
