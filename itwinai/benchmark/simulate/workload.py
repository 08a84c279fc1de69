"""What a worker has to do in a step, and how the workers' results meet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.simulate.collectives import Algorithm
from itwinai.errors import ConfigurationError

MIB = 2**20


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
    """The processor cores of a node, where workers compute on them.

    Attributes:
        number: cores of a node.
        threads: that one worker computes with.
        communicating: the bytes are moved and added up by the cores as well, as gloo does it.
    """

    number: float
    threads: int = 1
    communicating: bool = True

    def slowdown(self, workers: int) -> float:
        """Return by what computing takes longer if so many workers share the node: threads by cores, at least 1."""
        return max(1.0, workers * self.threads / self.number)

    def cost_of_hiding(self, workers: int) -> float:
        """Return the seconds by which a second of communication beside computation slows the latter down.

        Each worker communicates with one thread, for which the cores that compute nothing are taken first. On cores
        that are all busy, hiding gains nothing but waiting times.
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
        compute: seconds of forward and backward, and of what else is proportional to the samples, as waiting for data.
        gradient_bytes: size of all gradients; the parameters that are gathered under ZeRO are taken to be as large.
        batch: samples; None if not known: then any number of workers divides it evenly.
        parameters: number of trainable parameters; None if not known: then no memory is predicted.
        optimizer: seconds of the optimizer's step; 0 where it is not known and part of ``compute``.
        other: seconds of what does not depend on the samples: hooks, loggers, the loop.
        variation: coefficient of variation of the computing time of steps: standard deviation by mean.
        backward_share: share of backward in ``compute``. It computes two products of matrices for each one of forward
            (Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1), hence two thirds.
        layers: in the order of forward; by default gradients become ready in proportion to their bytes.
        cores: None where workers share no cores, as on GPUs.
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
            raise ConfigurationError(f"The computing time of a step is more than 0 seconds, and not {self.compute}.")
        for name in ("gradient_bytes", "optimizer", "other", "variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"A workload's {name} is 0 or more, and not {getattr(self, name)}.")
        if not 0 <= self.backward_share <= 1:
            raise ConfigurationError(f"The share of backward is between 0 and 1, and not {self.backward_share}.")
        if self.batch is not None and self.batch < 1:
            raise ConfigurationError(f"A batch has at least one sample, and not {self.batch}.")
        total = sum(layer.gradient_bytes for layer in self.layers)
        if self.layers and not math.isclose(total, self.gradient_bytes, rel_tol=0.01):
            raise ConfigurationError(
                f"The gradients of all layers are {total:.0f} bytes, and those of the model {self.gradient_bytes:.0f}. "
                "Give all layers, or none."
            )
        if self.layers and not sum(layer.weight for layer in self.layers) > 0:
            raise ConfigurationError("At least one layer takes time. Give it a weight of more than 0.")

    def most_workers(self, scaling: Scaling) -> float:
        """Return how many workers the batch is enough for: with strong scaling each of them needs a sample."""
        return math.inf if scaling == "weak" or self.batch is None else self.batch

    def share(self, workers: int, scaling: Scaling) -> float:
        """Return which share of the batch the worker with the most samples has.

        Raises:
            ConfigurationError: some worker would have no sample.
        """
        if scaling == "weak":
            return 1.0
        if workers > self.most_workers(scaling):
            raise ConfigurationError(
                f"A batch of {self.batch} samples cannot be divided among {workers} workers. Ask for fewer workers, a "
                "larger batch, or weak scaling."
            )
        return 1 / workers if self.batch is None else math.ceil(self.batch / workers) / self.batch


@dataclass(frozen=True)
class Exchange:
    """How the workers' gradients meet.

    Attributes:
        name: as people know it.
        stage: of ZeRO; 0 is plain data parallelism: every worker has the whole model.
        algorithm: of the collective operations.
        overlap: gradients are exchanged while backward computes the next ones; else all of them after it.
        prefetch: under stage 3, the parameters of the next part of the model are gathered while one computes.
        bucket_bytes: gradients that are exchanged together; 25 MiB in PyTorch's DDP. Under stage 3 also the size of
            the parts of the model that are gathered, unless layers are given.
        first_bucket_bytes: the same for the gradients that are ready first; 1 MiB in PyTorch's DDP.
        accumulate: batches whose gradients are added up before the optimizer steps.
    """

    name: str = "ddp"
    stage: int = 0
    algorithm: Algorithm = "best"
    overlap: bool = True
    prefetch: bool = True
    bucket_bytes: float = 25 * MIB
    first_bucket_bytes: float = 1 * MIB
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ConfigurationError(f"ZeRO has the stages 0 to 3, and none of {self.stage}.")
        if not (self.bucket_bytes > 0 and self.first_bucket_bytes > 0):
            raise ConfigurationError("A bucket holds more than 0 bytes.")
        if self.accumulate < 1:
            raise ConfigurationError(f"Gradients of at least one batch are added up, and not of {self.accumulate}.")

    @property
    def keeps_gradients(self) -> bool:
        """Whether a worker keeps all gradients until the optimizer steps; else every batch's are exchanged."""
        return self.stage < 2
