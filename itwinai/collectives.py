"""What gathers objects and tensors of all workers, under any strategy; all workers have to call it.

The strategies hold the operations themselves; here is the choice between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from itwinai.interfaces import Gathering

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy
    from torch import Tensor


def gather_of(strategy: Any) -> Callable[[Any], list[Any]]:
    """Return the function that gathers the objects of all workers of a strategy, by rank."""
    return strategy.gather_objects if isinstance(strategy, Gathering) else _alone


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Return the objects of all workers, by rank, also under Lightning's own strategies; all workers have to call it.

    Fewer come back where a strategy has no way to gather them.
    """
    gathered = gather_of(trainer.strategy)(value)
    if len(gathered) < trainer.world_size and dist.is_initialized() and dist.get_world_size() == trainer.world_size:
        gathered = [None] * trainer.world_size
        dist.all_gather_object(gathered, value)
    return gathered


def _alone(value: Any) -> list[Any]:
    return [value]


def tensor_gather_of(strategy: Strategy) -> Callable[[Tensor], Tensor]:
    """Return the function that stacks the tensors of all workers; they must have the same shape."""
    gather: Callable[[Tensor], Tensor] = getattr(strategy, "gather_alike", strategy.all_gather)
    return gather
