"""What is accumulated over an epoch: logged values and metrics, for checkpoints that are written within it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from itwinai.compat import lightning_trainer
from itwinai.compat import torchmetrics as compat_torchmetrics
from itwinai.loops.results import LeanResults
from itwinai.warn import warn_user

EpochState = dict[str, Any]


def capture_epoch_state(trainer: Trainer, results: LeanResults) -> EpochState:
    """Return the accumulated values of this worker, as tensors and plain values."""
    module = trainer.lightning_module
    for part in module.modules():
        if isinstance(part, MetricCollection):
            list(part.values(copy_state=False))  # lets those that share a state have it
    found = ((name, compat_torchmetrics.read_metric(metric)) for name, metric in _metrics(module))
    return {
        "results": results.accumulated(),
        "metrics": {name: state for name, state in found if state is not None},
        "readable": lightning_trainer.read_metrics(trainer),
    }


def restore_epoch_state(trainer: Trainer, results: LeanResults, kept: Sequence[EpochState], in_epoch: bool) -> None:
    """Let this worker continue accumulating where it, or where all workers of another number, stood.

    Args:
        trainer: in a fit, before its first batch.
        results: the logged values of the training.
        kept: what `capture_epoch_state` has returned on each worker.
        in_epoch: whether batches of the epoch were trained, so that what was logged counts for its end.
    """
    rank, same = trainer.global_rank, len(kept) == trainer.world_size
    lightning_trainer.write_metrics(
        trainer, {name: dict(values) for name, values in kept[rank if same else 0]["readable"].items()}
    )
    if in_epoch:
        states = kept[rank]["results"] if same else _joined([own["results"] for own in kept], first=rank == 0)
        results.restored = dict(states)
    for name, metric in _metrics(trainer.lightning_module):
        found = [own["metrics"][name] for own in kept if name in own["metrics"]]
        if same:
            if name in kept[rank]["metrics"]:
                compat_torchmetrics.write_metric(metric, kept[rank]["metrics"][name])
        elif found and not compat_torchmetrics.can_merge(metric):
            warn_user(
                f"The checkpoint was saved in mid-epoch by {len(kept)} workers, and the states of the metric {name!r} "
                f"cannot be merged for {trainer.world_size}: its value for this epoch covers only the batches after "
                "the resume."
            )
        elif found and rank == 0:
            compat_torchmetrics.write_metric(metric, found[0])
            for other in found[1:]:
                compat_torchmetrics.merge_metric(metric, other)


def _metrics(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    return ((name, part) for name, part in module.named_modules() if isinstance(part, Metric))


def _joined(ranks: Sequence[Mapping[str, Any]], first: bool) -> dict[str, Any]:
    """Return what all workers have logged as if one had, for rank 0; the others begin with what adds nothing to it.

    They have the keys too: a key that is not logged again has to be on all of them, or none. ``whole`` is what it is
    where the workers are not to reduce it.
    """
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for own in ranks for key in own):
        states = [own[key] for own in ranks if key in own]
        joined[key] = dict(states[0])
        operation = states[0]["options"]["reduce_fx"]
        for name in ("value", "weight"):
            if name in states[0]:
                joined[key][name] = _reduced([state[name] for state in states], operation if name == "value" else "sum")
    if first:
        return joined
    of_all = {key: state for key, state in joined.items() if not state["sync"]["rank_zero_only"]}
    return {key: {**state, **_neutral(state), "whole": state} for key, state in of_all.items()}


def _neutral(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the value and weight that leave a reduction as it is."""
    start = {"max": -math.inf, "min": math.inf}.get(state["options"]["reduce_fx"], 0.0)
    values = {"value": start, "weight": 0.0}
    return {name: torch.full_like(state[name], value) for name, value in values.items() if name in state}


def _reduced(values: list[Tensor], operation: str) -> Tensor:
    column = torch.stack(values)
    if operation in ("max", "min"):
        return column.max() if operation == "max" else column.min()
    return column.sum()
