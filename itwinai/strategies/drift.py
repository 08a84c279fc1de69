"""Checks that all workers still train the same model: the same parameters, bit by bit, at the same learning rates.

Parameters that begin equal and get equal gradients stay equal. Where they do not, some gradient was not averaged, or
some code changed a parameter on one worker only, and the result of the run is that of a single worker, or worse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from itwinai.errors import DriftError
from itwinai.strategies.backward import shortened

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Trained = tuple[Mapping[str, Sequence[int]], Sequence[float]]
"""The shapes of the parameters that a worker trains, by name, and its learning rates."""

PATIENCE = timedelta(seconds=60)
"""For other workers to freeze or unfreeze the same parameters, before the same step."""

_AT_ONCE = 2**21
"""Words of which there is a copy for a moment."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Gathering(Protocol):
    """A strategy that brings values of all workers together."""

    @property
    def root_device(self) -> torch.device:
        """The device of this worker."""

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all workers, stacked."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, by rank."""


def learning_rates(optimizers: Iterable[Optimizer]) -> list[float]:
    """Return the learning rates of all parameter groups."""
    return [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]


def bit_sums(module: nn.Module) -> dict[str, Tensor]:
    """Return for each parameter that all workers hold the sum of its bits, taken for integers.

    Left out are the parameters that the module tells DDP to ignore, and those that DeepSpeed shards.
    """
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    return {
        name: _sum_of_bits(parameter.detach())
        for name, parameter in module.named_parameters()
        if name not in ignored
        and not hasattr(parameter, "ds_id")
        and not isinstance(parameter, UninitializedParameter)
        and parameter.layout == torch.strided
    }


def _sum_of_bits(tensor: Tensor) -> Tensor:
    flat = (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
    size = flat.element_size()
    if flat.storage_offset() * size % 8:
        flat = flat.clone()
    words, rest = flat.split([(whole := flat.numel() * size // 8 * 8 // size), flat.numel() - whole])
    total = rest.view(_INTEGERS[size]).sum(dtype=torch.int64)
    for bits in words.view(torch.int64).split(_AT_ONCE):  # without conversions, which take ten times as long
        # The squares tell when one element has got smaller by what another has got larger.
        total = total + bits.sum() + 31 * (bits * bits).sum()
    return total


def compare(module: nn.Module, optimizers: Sequence[Optimizer], strategy: Gathering) -> None:
    """Check that all workers hold the same parameters and have the same learning rates.

    Raises:
        DriftError: they do not.
    """
    sums, rates = bit_sums(module), learning_rates(optimizers)
    numbers = [
        torch.stack([value.to(strategy.root_device) for value in sums.values()])
        if sums
        else torch.zeros(0, dtype=torch.int64, device=strategy.root_device),
        torch.tensor(rates, dtype=torch.float64).view(torch.int64).to(strategy.root_device),
    ]
    # Odd factors: what one parameter has more does not make up for what another has less.
    digest = torch.stack(
        [(values * (2 * torch.arange(len(values), device=values.device) + 1)).sum() for values in numbers]
    )
    everyone = strategy.all_gather(digest).tolist()
    if all(other == everyone[0] for other in everyone):
        return
    gathered = strategy.gather_objects(({name: int(value) for name, value in sums.items()}, rates))
    trainer: Trainer = module.trainer  # type: ignore[assignment]
    _compare_rates([theirs for _, theirs in gathered], trainer)
    first, _ = gathered[0]
    differing = {
        rank: [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        for rank, (theirs, _) in enumerate(gathered)
    }
    names = list(dict.fromkeys(name for found in differing.values() for name in found))
    raise DriftError(
        f"{len(names)} of {len(sums)} parameters differ between ranks after epoch {trainer.current_epoch}, "
        f"step {trainer.global_step}: {shortened(names)}; {_others(differing)} from rank 0. Look for code that changes "
        "them on one rank only: code for one rank (is_global_zero), random numbers in an optimizer or in hooks, "
        "gradients modified after averaging, optimizer steps taken before it (parameter hooks), or state loaded on one "
        "rank only. If ranks are meant to differ, set check_drift=False in the strategy."
    )


def compare_trained(everyone: Sequence[Trained], trainer: Trainer) -> None:
    """Check that all workers train the same parameters, at the same learning rates.

    Args:
        everyone: what the workers train, by rank.
        trainer: the trainer, for the epoch, the step and the metrics that schedulers monitor.

    Raises:
        DriftError: they do not.
    """
    first = {name: tuple(shape) for name, shape in everyone[0][0].items()}
    differing = {
        rank: [name for name in {**first, **shapes} if first.get(name) != _shape(shapes.get(name))]
        for rank, (shapes, _) in enumerate(everyone)
    }
    names = list(dict.fromkeys(name for found in differing.values() for name in found))
    if names:
        raise DriftError(
            f"Not all ranks train the same parameters in epoch {trainer.current_epoch}, step {trainer.global_step}: "
            f"{shortened(names)} exist, have another shape, or require a gradient on some ranks only; "
            f"{_others(differing)} from rank 0. Freeze, unfreeze and create parameters on all ranks alike."
        )
    _compare_rates([rates for _, rates in everyone], trainer)


def _compare_rates(rates: Sequence[Sequence[float]], trainer: Trainer) -> None:
    if all(list(other) == list(rates[0]) for other in rates):
        return
    monitored = [config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    cause = (
        f"A scheduler monitors {', '.join(map(repr, monitored))}: log it with sync_dist=True, so that all ranks see "
        "the same value."
        if monitored
        else "Compute them from values that are equal on all ranks: log values with sync_dist=True, and broadcast "
        "random numbers."
    )
    text = "; ".join(
        f"{', '.join(f'{rate:g}' for rate in theirs)} on rank {rank}" for rank, theirs in enumerate(rates[:8])
    )
    when = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
    raise DriftError(f"Learning rates differ between ranks ({when}): {text}. {cause}")


def _shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


def _others(differing: Mapping[int, Sequence[str]]) -> str:
    ranks = [str(rank) for rank, names in differing.items() if names]
    return f"rank {ranks[0]} differs" if len(ranks) == 1 else f"ranks {shortened(ranks)} differ"


def gather(store: dist.Store, rank: int, world_size: int, value: Any) -> list[Any]:
    """Return the values of all workers, if they come in time; they need not.

    Args:
        store: what they have in common, for this occasion.
        rank: this worker.
        world_size: number of workers.
        value: plain data.

    Raises:
        DriftError: some have not come.
    """
    store.set(str(rank), json.dumps(value))
    ranks = [str(other) for other in range(world_size)]
    try:
        store.wait(ranks, PATIENCE)
    except dist.DistStoreError as error:
        missing = [other for other in ranks if not store.check([other])]
        raise DriftError(
            f"Rank {rank} has frozen, unfrozen, added or replaced parameters, and {PATIENCE.seconds} s later rank "
            f"{shortened(missing)} has not. Do it on all ranks before the same step."
        ) from error
    return [json.loads(store.get(other)) for other in ranks]
