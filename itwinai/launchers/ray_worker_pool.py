"""Ray workers that are there before a run: kept from the last one, or started early. Their imports take seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass
class RayWorkerPool:
    """The actors of the last run, if it has ended well.

    Attributes:
        actors: one per rank.
        key: where they are, and with which environment variables.
    """

    actors: list[Any] = field(default_factory=list)
    key: Key = ()

    def acquire(self, group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str]) -> list[Any] | None:
        """Return the actors for a run in the same bundles with the same variables; None if there are no such."""
        actors, self.actors = self.actors, []
        if actors and self.key == _key(group, bundles, variables):
            return actors
        _end(actors)
        return None

    def release(
        self, group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str], actors: Sequence[Any]
    ) -> None:
        """Keep the actors of a run that has ended well."""
        self.close()
        self.actors, self.key = list(actors), _key(group, bundles, variables)

    def close(self) -> None:
        """End the actors."""
        actors, self.actors = self.actors, []
        _end(actors)


class EarlyRayWorkers:
    """Workers that are started while the driver still imports torch and builds the trainer.

    Args:
        num_workers: how many, with one CPU each, and one GPU each if the cluster has GPUs that they may use.
        variables: environment variables that libraries read when they are loaded.
        on_cpu: whether they use no GPU.
    """

    placement = "PACK"

    def __init__(self, num_workers: int, variables: Mapping[str, str], on_cpu: bool = False) -> None:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        self.variables = dict(variables)
        self.resources: dict[str, float] = {"CPU": 1}
        if not on_cpu and ray.cluster_resources().get("GPU", 0) > 0:
            self.resources["GPU"] = 1
        self.group = placement_group([self.resources] * num_workers, strategy=self.placement)
        try:
            self.actors = start_actors(self.group, range(num_workers), self.resources, self.variables, {})
        except BaseException:
            remove_placement_group(self.group)
            raise

    def are_for(self, resources: Mapping[str, float], num_workers: int, placement: str) -> bool:
        """Return whether they are as a run wants its workers, wherever they are."""
        return (dict(resources), num_workers, placement) == (self.resources, len(self.actors), self.placement)

    def close(self) -> None:
        """End the workers, and release what is reserved for them."""
        from ray.util.placement_group import remove_placement_group

        _end(self.actors)
        remove_placement_group(self.group)


def start_actors(
    group: Any,
    bundles: Sequence[int],
    resources: Mapping[str, float],
    variables: Mapping[str, str],
    runtime_env: Mapping[str, Any],
) -> list[Any]:
    """Start an actor of a `RayWorker` in each of some bundles of a placement group; return those of ranks 0, 1...

    Args:
        group: the placement group.
        bundles: numbers of its bundles.
        resources: what each worker needs.
        variables: environment variables of the workers.
        runtime_env: Ray's runtime environment of the workers.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from itwinai.launchers.ray_worker import RayWorker

    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    folder = None if "working_dir" in runtime_env else os.getcwd()
    remote = ray.remote(RayWorker)
    return [
        remote.options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            resources=custom,
            runtime_env=dict(runtime_env),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
        ).remote(rank, sys.path, folder, dict(variables))
        for rank, bundle in enumerate(bundles)
    ]


def _key(group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str]) -> Key:
    return group.id.hex(), tuple(bundles), tuple(sorted(variables.items()))


def _end(actors: Sequence[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)
