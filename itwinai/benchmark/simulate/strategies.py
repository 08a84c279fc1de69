"""How gradients meet under the strategies that people know by name."""

from __future__ import annotations

import dataclasses

from itwinai.benchmark.simulate.workload import Exchange
from itwinai.errors import ConfigurationError, did_you_mean

_STAGES = {
    "ddp": 0,
    "horovod": 0,
    "ray": 0,
    "ray_ddp": 0,
    "ray_horovod": 0,
    "zero1": 1,
    "zero2": 2,
    "zero3": 3,
    "fsdp": 3,
    "deepspeed": 2,
    "ray_deepspeed": 2,
    **{f"deepspeed_stage_{stage}": stage for stage in range(4)},
}

# itwinai lets DeepSpeed exchange in step(), when nothing is left to compute.
_AFTER_BACKWARD = ("deepspeed_stage_0", "deepspeed_stage_1")

STRATEGIES = tuple(_STAGES)


def exchange_of(strategy: str, options: Exchange) -> Exchange:
    """Return how gradients meet under a strategy.

    Horovod's way of putting gradients together differs from DDP's in details that are left out.

    Args:
        strategy: a name that the trainer takes, or ``zero1``, ``zero2`` or ``zero3``.
        options: all but name and stage.

    Raises:
        ConfigurationError: there is no model of this strategy.
    """
    if strategy not in _STAGES:
        raise ConfigurationError(
            f"There is no model of the strategy '{strategy}'.{did_you_mean(strategy, STRATEGIES)} There are models of "
            f"{', '.join(STRATEGIES)}."
        )
    overlap = options.overlap and strategy not in _AFTER_BACKWARD
    return dataclasses.replace(options, name=strategy, stage=_STAGES[strategy], overlap=overlap)
