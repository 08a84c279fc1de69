"""One collective operation for all values that were logged with ``sync_dist``, and a check of other operations.

Lightning exchanges them one by one: a barrier and one or two reductions for each key. When two workers log different
keys, values of different keys are added up, or the run hangs. Here every worker sends one vector of the same length,
with a fingerprint of its keys before its values: different keys are found out before a value is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from itwinai.collectives import tensor_gather_of
from itwinai.errors import LoggedKeysError, UnequalShapesError

# Numbers in the first message. It has the same length on workers whose keys differ, and 2 KiB take no longer than one.
ROOM = 256
HEADER = 2


@dataclass(frozen=True)
class Entry:
    """A number to be reduced over the workers.

    Attributes:
        name: what all workers call it.
        value: this worker's, with one element.
        op: ``mean``, ``sum``, ``max`` or ``min``.
        weight: this worker's, in a mean.
    """

    name: str
    value: Tensor
    op: str
    weight: float = 1.0


def exchange(strategy: Strategy, entries: Sequence[Entry]) -> list[Tensor]:
    """Reduce numbers over all workers.

    Args:
        strategy: through which the workers talk. Every worker has to call this, with the same names in any order.
        entries: the numbers; none on a worker that only takes part.

    Returns:
        The reduced values, in the order of the entries.

    Raises:
        LoggedKeysError: the names differ between the workers.
    """
    order = sorted(range(len(entries)), key=lambda index: entries[index].name)
    names = [entries[index].name for index in order]
    device = strategy.root_device
    own = torch.zeros(0, dtype=torch.float64, device=device)
    if entries:
        own = torch.stack([entries[index].value.detach().reshape(()).to(device, torch.float64) for index in order])
        weights = [entries[index].weight for index in order]
        own = torch.cat([own, torch.tensor(weights, dtype=torch.float64).to(device)])
    values = _gathered(strategy, names, own)
    results: list[Tensor] = [own] * len(entries)
    columns = values.unbind(1)
    for index, column, weights_of in zip(order, columns, columns[len(entries) :], strict=False):
        results[index] = reduce_column(column, entries[index].value.dtype, entries[index].op, weights_of)
    return results


def gather_values(strategy: Strategy, values: Mapping[str, float]) -> dict[str, list[float]]:
    """Return some numbers of all workers, by rank; all workers have to call it, with the same names.

    Raises:
        LoggedKeysError: some workers exchange logged values.
    """
    names = sorted(values)
    own = torch.tensor([values[name] for name in names], dtype=torch.float64, device=strategy.root_device)
    columns = _gathered(strategy, [f"{CHECKING}{name}" for name in names], own).unbind(1)
    return {name: column.tolist() for name, column in zip(names, columns, strict=True)}


def gather_rows(strategy: Strategy, name: str, own: Sequence[float]) -> list[list[float]]:
    """Return some numbers of all workers, a row for each; all workers have to call it, with the same name.

    Raises:
        LoggedKeysError: some workers give another name, or exchange logged values.
    """
    numbers = torch.tensor(own, dtype=torch.float64, device=strategy.root_device)
    return _gathered(strategy, [name], numbers).tolist()


def _gathered(strategy: Strategy, names: Sequence[str], own: Tensor) -> Tensor:
    """Return the numbers of all workers, a row for each, having made sure that they have the same names.

    Args:
        strategy: through which the workers talk.
        names: in the same order on all workers.
        own: this worker's numbers, float64, on the strategy's device.
    """
    # A worker that logs other keys would send a message of another length, at which gloo ends the process and NCCL
    # hangs. So every message has one size, and its head says what it is about: if the heads differ,
    # all workers see it in the same exchange and raise the same error. What has no room follows once they agree.
    first = own[: ROOM - HEADER]
    message = torch.zeros(ROOM, dtype=torch.float64, device=strategy.root_device)
    message[0], message[1] = fingerprint(names), len(names)
    message[HEADER : HEADER + len(first)] = first
    gather = tensor_gather_of(strategy)
    received = gather(message)
    if not bool((received[:, :HEADER] == message[:HEADER]).all()):
        raise _difference(strategy, names)
    values = received[:, HEADER : HEADER + len(first)]
    return values if len(own) == len(first) else torch.cat([values, gather(own[len(first) :])], dim=1)


# Prefix of the names of operations that are not keys of logged values.
CHECKING = "check of "
GATHERING = "self.all_gather of "
COMPUTING = "compute() of "
METRIC = "the metric "


def check_shapes(strategy: Strategy, tensor: Tensor) -> None:
    """Find out whether all workers are about to gather tensors of one shape and type; all workers have to call it.

    Libraries that move data end the process, or hang, where these differ. The message has the form of those of
    `metric_sync`, so that a worker that exchanges logged values at that time is detected as well.

    Args:
        strategy: through which the workers talk.
        tensor: this worker's.

    Raises:
        UnequalShapesError: shapes or types differ, on all workers.
        LoggedKeysError: some workers exchange logged values.
    """
    name = f"{GATHERING}{tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"
    message = torch.zeros(ROOM, dtype=torch.float64, device=strategy.root_device)
    message[0], message[1] = fingerprint([name]), 1
    if not bool((tensor_gather_of(strategy)(message)[:, :HEADER] == message[:HEADER]).all()):
        raise _difference(strategy, [name])


def fingerprint(names: Sequence[str]) -> int:
    """Return a number of 52 bits, which a float64 holds exactly."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "big") >> 12


def reduce_column(column: Tensor, dtype: torch.dtype, op: str, weights: Tensor | None = None) -> Tensor:
    """Reduce what all workers have sent of one value, to the number that a collective reduction would give.

    Args:
        column: float64, one number per worker.
        dtype: of the value. Means of integers are floating-point numbers.
        op: ``mean``, ``sum``, ``max`` or ``min``.
        weights: of the workers, in a mean; they count alike by default.
    """
    if op == "mean" and not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    if op == "mean" and weights is not None and bool((weights != weights[0]).any()):
        counting = weights > 0
        return ((column[counting] * weights[counting]).sum() / weights.sum()).to(dtype)
    column = column.to(dtype)
    if op == "max":
        return column.max()
    if op == "min":
        return column.min()
    return column.sum() if op == "sum" else column.sum() / len(column)


def _difference(strategy: Strategy, names: Sequence[str]) -> LoggedKeysError | UnequalShapesError:
    """Return the error for workers that do different things at the same time; all workers have to call it.

    Args:
        strategy: through which they talk.
        names: what this worker does: the keys that it exchanges, or the one tensor that it gathers.
    """
    world_size: int = strategy.world_size  # type: ignore[attr-defined]
    everyone = [strategy.broadcast(list(names), src=rank) for rank in range(world_size)]
    common = set(everyone[0]).intersection(*everyone[1:])
    keys = [
        sorted({name.removesuffix(WEIGHT) for name in names if name not in common and not name.startswith(CHECKING)})
        for names in everyone
    ]
    gathering = [[key for key in own if key.startswith(GATHERING)] for own in keys]
    if all(gathering):
        shapes = "; ".join(f"rank {rank}: {own[0].removeprefix(GATHERING)}" for rank, own in enumerate(gathering))
        return UnequalShapesError(
            f"self.all_gather stacks the tensors of all workers, but their shapes differ: {shapes}. The last batch of "
            "a worker may be smaller than those of others. Pad the tensors to one shape and gather their lengths too; "
            "or collect the values in a torchmetric (CatMetric), which gathers tensors of any length; or gather means "
            "and their numbers of samples."
        )
    lines = [f"rank {rank}: {', '.join(own) or 'none of these'}" for rank, own in enumerate(keys)]
    text = f"\n  {chr(10).join(lines).replace(chr(10), chr(10) + '  ')}\n"
    if any(key.startswith(COMPUTING) for own in keys for key in own):
        return LoggedKeysError(
            "The workers compute different metrics at the same time, or only some workers compute one, but all have "
            f"to exchange its state.{text}Update, log and compute the same metrics in the same order on all workers. "
            "A metric need not be updated on all of them."
        )
    if any(gathering):
        return LoggedKeysError(
            "Some workers exchange values logged with sync_dist=True, while others are in another operation."
            f"{text}Make all workers run equally many batches, and in each the same calls in the same order."
        )
    if any(key.startswith(METRIC) for own in keys for key in own):
        return LoggedKeysError(
            f"Only some workers have logged a metric, but all have to compute it.{text}Call self.log with the metric "
            "on all workers; it need not have been updated on all of them."
        )
    return LoggedKeysError(
        "The workers have logged different keys with sync_dist=True, and a key of only some workers cannot be "
        f"reduced.{text}"
        "Log the same keys on all workers (a neutral value where there is none), or leave out sync_dist=True for these."
    )


# What the name of the weight of a mean ends with; the mean itself has the name of the key.
WEIGHT = " (weight)"
