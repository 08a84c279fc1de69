"""What a trial needs, and what the nodes of a Ray cluster have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from itwinai.errors import ConfigurationError, nearest
from itwinai.reporting.formatting import count_text, joined

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Amounts = Mapping[str, float]

_KNOWN = ("CPU", "GPU", "memory")
UNIT = 10_000
"""Ray counts resources in ten-thousandths; smaller amounts it does not know."""


@dataclass(frozen=True)
class TrialResources:
    """What each trial of a search needs.

    Attributes:
        workers: number of workers of a trial.
        per_worker: what each worker needs, by Ray's name of the resource: CPU (1 if it is not given), GPU, memory in
            bytes, or one of the cluster's own. A worker uses one device, so that GPU is 1, or, if a trial has one
            worker only, the part of one that it shares with other trials.
        spread: whether the workers of a trial may lie on different nodes, which Ray's can; those of other strategies
            are processes beside the trial's own, on one node.
        strategy: name of the strategy, for people.

    Raises:
        ConfigurationError: no such resources can be given to a worker.
    """

    workers: int = 1
    per_worker: Amounts = field(default_factory=dict)
    spread: bool = False
    strategy: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or self.workers < 1:
            raise ConfigurationError(f"The number of workers per trial must be at least 1; got {self.workers!r}.")
        for name, amount in self.per_worker.items():
            _check(name, amount)
        amounts = {"CPU": 1, **self.per_worker}
        object.__setattr__(self, "per_worker", {name: amount for name, amount in amounts.items() if amount})
        self._check_gpus(amounts.get("GPU", 0))
        if not self.per_worker:
            raise ConfigurationError(
                "A worker that needs nothing cannot be placed: any number of trials would run at once. Give it CPUs, "
                "as in {'CPU': 1}."
            )

    @property
    def total(self) -> dict[str, float]:
        """What a whole trial needs."""
        return {name: amount * self.workers for name, amount in self.per_worker.items()}

    def bundles(self) -> list[dict[str, float]]:
        """Return what has to be on one node each, for a Ray placement group.

        Returns:
            One bundle for the trial with its local workers in it. For workers that may lie on different nodes, a
            bundle for each, and before them an empty one for the trial's own process, which only passes on what they
            report: Ray Tune makes no bundle of that, and starts the process beside the first worker.
        """
        if not self.spread:
            return [self.total]
        return [{}, *({**self.per_worker} for _ in range(self.workers))]

    def placement_group_factory(self) -> PlacementGroupFactory:
        """Return the request for `ray.tune.with_resources`. Workers are put on as few nodes as possible."""
        from ray.tune import PlacementGroupFactory

        return PlacementGroupFactory(self.bundles(), strategy="PACK")

    def text(self) -> str:
        """Return what a trial needs, as in ``2 workers (ddp) with 1 CPU each, on one node``."""
        strategy = f" ({self.strategy})" if self.strategy else ""
        text = f"{count_text(self.workers, 'worker')}{strategy} with {amounts_text(self.per_worker, ' and ')}"
        if self.workers == 1:
            return text
        return f"{text} each, {'on any nodes' if self.spread else 'on one node'}"

    def _check_gpus(self, gpus: float) -> None:
        if gpus > 1:
            raise ConfigurationError(
                f"You requested {gpus:g} GPUs per worker, but a worker uses one device. Ask for {math.ceil(gpus)} "
                "workers per trial with 1 GPU each."
            )
        if 0 < gpus < 1 and self.workers > 1:
            raise ConfigurationError(
                f"You requested {self.workers} workers with {gpus:g} GPUs each per trial, but workers of one trial "
                "cannot share a GPU. Give each worker 1 GPU, or each trial 1 worker: then several trials share a GPU."
            )


@dataclass(frozen=True)
class NodeResources:
    """What a node of a Ray cluster has.

    Attributes:
        id: Ray's.
        name: of its host.
        amounts: how much of each resource it has, in use or not.
    """

    id: str
    name: str
    amounts: Amounts

    def room_for(self, need: Amounts) -> int:
        """Return how often an amount of resources is there. A part of a GPU has to be of one GPU."""
        return min((self._times(name, amount) for name, amount in need.items() if amount), default=0)

    def _times(self, name: str, amount: float) -> int:
        there, wanted = round(self.amounts.get(name, 0) * UNIT), round(amount * UNIT)
        if name == "GPU" and wanted < UNIT:
            return there // UNIT * (UNIT // wanted)
        return there // wanted


def cluster_nodes() -> list[NodeResources]:
    """Return the nodes of the cluster that this process is connected to, those that are alive."""
    import ray

    return [
        NodeResources(node["NodeID"], node["NodeManagerHostname"], _amounts(node["Resources"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _amounts(resources: Amounts) -> dict[str, float]:
    """Return what a trial may ask for: Ray also gives each node and each placement group a resource of its own."""
    return {
        name: amount for name, amount in resources.items() if not name.startswith("node:") and "_group_" not in name
    }


def _check(name: str, amount: float) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
        raise ConfigurationError(
            f"The amount of the resource {name!r} per worker must be a number of at least 0; got {amount!r}."
        )
    if 0 < amount < 1 / UNIT:
        raise ConfigurationError(
            f"You requested {amount_text(name, amount)} per worker, but Ray counts in steps of {1 / UNIT:g}."
        )
    if name not in _KNOWN and (right := _misspelled(name)):
        raise ConfigurationError(
            f"There is no resource {name!r}. Did you mean '{right}'? Ray's own are {', '.join(_KNOWN)}; others are "
            "named when a node is started."
        )


def _misspelled(name: str) -> str | None:
    """Return Ray's own resource whose name was probably meant: other capitals, or a plural."""
    return nearest(name, _KNOWN, cutoff=0.85)


def amount_text(name: str, amount: float) -> str:
    """Return an amount of a resource, as in ``2 CPUs`` or ``1.5 GiB memory``.

    Args:
        name: Ray's name of the resource.
        amount: how much of it; of memory in bytes.
    """
    if name in ("memory", "object_store_memory"):
        return f"{amount / 2**30:.3g} GiB {name.replace('_', ' ')}"
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"


def amounts_text(amounts: Mapping[str, float], last: str = ", ") -> str:
    """Return amounts of resources; ``nothing`` if there are none.

    Args:
        amounts: the amounts, by Ray's names.
        last: what stands before the last of several.
    """
    return joined([amount_text(name, amount) for name, amount in amounts.items()], last) or "nothing"


def resource_name(name: str) -> str:
    """Return a resource as it stands in a sentence: ``the CPUs``, ``the memory``, ``the resource 'licence'``."""
    if name in ("CPU", "GPU"):
        return f"the {name}s"
    return "the memory" if name == "memory" else f"the resource '{name}'"
