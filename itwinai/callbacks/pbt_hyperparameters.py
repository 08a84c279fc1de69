"""Let optimizers resume from another trial's state with this trial's hyperparameters.

In population based training a trial takes over the checkpoint of a better one, and changes hyperparameters a little.
The checkpoint holds the groups of the optimizer, and with them the learning rate of the other trial, which would win
over the changed one. Nothing is known here of names in configs: what differs between the groups as the two trials have
configured them is what was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Hyperparameters = list[list[dict[str, Any]]]
"""For each optimizer, for each of its groups: the plain values, by name."""


def hyperparameters_of(optimizers: Sequence[Any]) -> Hyperparameters:
    """Return the current hyperparameters of optimizers: all plain values of their groups."""
    return [
        [
            {name: _plain(value) for name, value in group.items() if name != "params" and _is_plain(value)}
            for group in optimizer.param_groups
        ]
        for optimizer in optimizers
    ]


def mutate(trainer: Trainer, before: Hyperparameters, after: Hyperparameters) -> None:
    """Change what differs between two configurations in the trainer's optimizers and schedulers.

    A learning rate is multiplied by the ratio of the two, so that what a scheduler has made of it stays; all else is
    set.

    Args:
        trainer: whose optimizers have loaded the state of a run that began with ``before``.
        before: hyperparameters with which that run's optimizers were created.
        after: those with which this run's were made.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for optimizer, old_groups, new_groups in zip(trainer.optimizers, before, after, strict=False):
        for index, (old, new) in enumerate(zip(old_groups, new_groups, strict=False)):
            group = optimizer.param_groups[index]
            changed = {name for name in new if name in old and old[name] != new[name]}
            for name in changed:
                if name == "lr":
                    _scale(group, index, old["lr"], new["lr"], [one for one in schedulers if _belongs(one, optimizer)])
                else:
                    group[name] = _like(group.get(name), new[name])


def _scale(group: dict[str, Any], index: int, old: float, new: float, schedulers: Sequence[Any]) -> None:
    ratio = new / old if old else None
    group["lr"] = _like(group["lr"], new if ratio is None else float(group["lr"]) * ratio)
    for scheduler in schedulers:
        bases = getattr(scheduler, "base_lrs", None)
        if bases is not None and index < len(bases):
            bases[index] = new if ratio is None else float(bases[index]) * ratio


def _belongs(scheduler: Any, optimizer: Any) -> bool:
    own = getattr(scheduler, "optimizer", None)
    return own is optimizer or getattr(own, "param_groups", None) is optimizer.param_groups


def _is_plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _like(present: Any, value: Any) -> Any:
    """Return a value in the form that a group has it in: a tensor, for optimizers that can be captured, or a tuple."""
    if isinstance(present, Tensor):
        return present.new_tensor(value)
    return tuple(value) if isinstance(present, tuple) else value
