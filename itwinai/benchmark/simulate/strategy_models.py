"""How strategies exchange gradients: ZeRO stage, buckets, overlap with backward."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from itwinai.benchmark.simulate.collectives import Algorithm
from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.strategies.registry import STRATEGY_NAMES, find_entry

MIB = 2**20

# ZeRO as the literature and other libraries name it; stage 3 is also what fsdp does.
_OTHERS = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}

_ENTRIES = [
    entry for name in STRATEGY_NAMES if (entry := find_entry(name)) and name != "ddp_find_unused_parameters_true"
]

# Those that average whole gradients come first, as in the tables of predictions.
STRATEGIES = (*(entry.name for entry in sorted(_ENTRIES, key=lambda one: "deepspeed" in one.packages)), *_OTHERS)


@dataclass(frozen=True)
class StrategyModel:
    """How the gradients of the workers are averaged.

    Attributes:
        name: of the strategy.
        stage: of ZeRO; 0 is plain data parallelism: every worker has the whole model.
        algorithm: of the collective operations.
        overlap: gradients are exchanged while backward computes the next ones; otherwise all of them after it.
        prefetch: with stage 3, the parameters of the next part of the model are gathered while one computes.
        bucket_bytes: gradients that are exchanged together; 25 MiB in PyTorch's DDP. With stage 3 also the size of the
            parts of the model that are gathered, unless layers are given.
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
            raise ConfigurationError(f"The stage of ZeRO must be 0 to 3; got {self.stage}.")
        if not (self.bucket_bytes > 0 and self.first_bucket_bytes > 0):
            raise ConfigurationError("A bucket must hold more than 0 bytes.")
        if self.accumulate < 1:
            raise ConfigurationError(f"accumulate must be at least 1; got {self.accumulate}.")

    @property
    def keeps_gradients(self) -> bool:
        """Whether a worker keeps all gradients until the optimizer steps; if not, it exchanges those of each batch."""
        return self.stage < 2


def strategy_model(strategy: str, options: StrategyModel) -> StrategyModel:
    """Return the model of a strategy.

    Horovod's tensor fusion differs from DDP's buckets in details that are left out.

    Args:
        strategy: a name that the trainer accepts, or ``zero1``, ``zero2`` or ``zero3``.
        options: all but name and stage.

    Raises:
        ConfigurationError: there is no model of this strategy.
    """
    if strategy not in STRATEGIES:
        raise ConfigurationError(
            f"There is no model of the strategy '{strategy}'.{did_you_mean(strategy, STRATEGIES)} There are models of "
            f"{', '.join(STRATEGIES)}."
        )
    entry = find_entry(strategy)
    if entry is None:
        return dataclasses.replace(options, name=strategy, stage=_OTHERS[strategy])
    overlap = options.overlap and entry.overlaps_backward
    return dataclasses.replace(options, name=strategy, stage=entry.zero_stage, overlap=overlap)
