"""Workers that are Ray actors in a placement group."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator

from itwinai.compat import ray as compat_ray
from itwinai.errors import ConfigurationError, ResourceError, WorkerError
from itwinai.launchers.base import PayloadLauncher, on_signals, preemption_signals
from itwinai.launchers.environment import RankInfo
from itwinai.launchers.payload import Payload, Result
from itwinai.launchers.ray_init import FORWARDED, THREADS, StartingRay, check_crowd, connect, forwarded_variables
from itwinai.launchers.ray_worker import Mailbox
from itwinai.launchers.ray_worker_pool import EarlyRayWorkers, RayWorkerPool, start_actors
from itwinai.launchers.worker_failure import Failure, WorkerGroupError
from itwinai.warn import warn_user

if TYPE_CHECKING:
    pass

# How long resources that the whole cluster does not have are waited for: nodes may still be joining it.
JOINING = 15.0
# After the first failure the others get this long to run their hooks on exceptions.
GRACE = 8.0


class RemoteGPUs(CUDAAccelerator):
    """GPUs of Ray workers, which the driver itself need not have."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Return one index per worker of a node."""
        if isinstance(devices, list):
            return devices
        count = int(devices)
        if count < 1:
            raise ConfigurationError(
                f"With Ray on GPUs, devices must be the number of workers per node; got {devices}."
            )
        return list(range(count))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """Return the devices that the workers of a node use."""
        return [torch.device("cuda", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return the number of GPUs of the driver, or 1: the GPUs of the cluster are not known yet."""
        return max(1, CUDAAccelerator.auto_device_count())

    @staticmethod
    def is_available() -> bool:
        """Return True: whether the cluster has them shows when the workers are placed."""
        return True


@dataclass(frozen=True)
class RayPlacement:
    """Where and with what a strategy's workers run; see `itwinai.strategies.RayStrategy` for the fields."""

    address: str | None = None
    placement: str = "PACK"
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    timeout: float = 300.0
    min_workers: int | None = None

    def __post_init__(self) -> None:
        if self.placement not in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
            raise ConfigurationError(
                f"placement={self.placement!r} is unknown; choose PACK, SPREAD, STRICT_PACK or STRICT_SPREAD."
            )
        if self.min_workers is not None and self.min_workers < 1:
            raise ConfigurationError(f"min_workers must be at least 1; got {self.min_workers}.")
        gpus = self.resources_per_worker.get("GPU", 0)
        if gpus > 1:
            raise ConfigurationError(
                f"resources_per_worker requests {gpus} GPUs, but a worker uses one device: request more workers."
            )

    def launcher(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        accelerator: str,
        variables: Mapping[str, str],
    ) -> PayloadLauncher | None:
        """Return the launcher for a number of workers."""
        resources = dict(self.resources_per_worker)
        resources.setdefault("CPU", 1)
        if accelerator == "cuda":
            resources.setdefault("GPU", 1)
        return RayLauncher(self, resources, num_processes * num_nodes, variables)


class RayLauncher(PayloadLauncher):
    """Runs the payload in one Ray actor per worker.

    Args:
        placement: how the workers are placed.
        resources: what each worker needs.
        num_workers: number of workers.
        variables: environment variables for the workers.

    Attributes:
        starting: Ray that the command line has begun to start.
        pool: where workers come from and are left for the next run, as the trials of a search have it.
    """

    starting: StartingRay | None = None
    pool: RayWorkerPool | None = None

    def __init__(
        self, placement: RayPlacement, resources: dict[str, float], num_workers: int, variables: Mapping[str, str]
    ) -> None:
        self.placement = placement
        self.resources = resources
        self.num_workers = num_workers
        self.variables = dict(variables)
        self.requested_workers = num_workers
        self.processes: list[tuple[str, int]] = []
        self._placed_once = False
        self._early: EarlyRayWorkers | None = None
        self._pending_signals: list[int] = []

    def kill(self, signum: int) -> None:
        """Send a signal to every worker's process."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def send_signal(pid: int, signum: int) -> None:  # travels by value: nothing has to be imported for it
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

        here = ray.get_runtime_context().get_node_id()
        for node, pid in self.processes:
            if node == here:  # a task would have to wait for a process of its own
                send_signal(pid, signum)
        # An actor that is busy takes no calls, but a task beside it on the same node can reach its process.
        send = ray.remote(num_cpus=0)(send_signal)
        ray.get(
            [
                send.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(pid, signum)
                for node, pid in self.processes
                if node != here
            ]
        )

    def __getstate__(self) -> dict[str, object]:
        own: dict[str, object] = {
            "processes": [],
            "_pending_signals": [],
            "starting": None,
            "pool": None,
            "_early": None,
        }
        return {**super().__getstate__(), **own}

    def _on_signal(self, signum: int) -> None:
        if not self.processes:  # nothing runs yet that could save: end now, with the exit code of a shell
            raise SystemExit(128 + signum)
        self._pending_signals.append(signum)  # Ray may be inside a call, and accepts no other from a handler

    def run_workers(self, payload: Payload) -> Sequence[Result]:
        """Place the actors, hand each the payload, and wait for their results."""
        import ray

        self._connect()
        self._pending_signals = []
        packed = payload.pack()
        with (
            on_signals(preemption_signals(payload.trainer), self._on_signal),
            self._placement_group() as (group, bundles),
        ):
            variables = self._environment()
            actors = self._actors(group, bundles, variables)
            running: dict[Any, int] = {}
            try:
                rank_infos = self._rank_infos(actors, [node for _, node in bundles])
                reference = ray.put(packed)
                mailbox = f"itwinai-{uuid.uuid4().hex}"
                for rank, (actor, rank_info) in enumerate(zip(actors, rank_infos, strict=True)):
                    running[actor.run.remote(reference, rank_info, mailbox)] = rank
                results = self._wait(running, mailbox)
                if self.pool:
                    self.pool.release(group, bundles, variables, actors)
                    actors = []
                return results
            except KeyboardInterrupt as interrupt:
                ended: list[Any] = []
                with suppress(KeyboardInterrupt):  # pressed again: no more patience
                    self.kill(signal.SIGINT)
                    ended, _ = ray.wait(list(running), num_returns=len(running) or 1, timeout=GRACE)
                raise WorkerGroupError(interrupt, _trace(_outcomes(ended))) from None
            finally:
                self.processes = []
                for actor in actors:
                    ray.kill(actor)

    def _connect(self) -> None:
        """Connect to a cluster, or start Ray on this machine, unless someone has."""
        import ray

        num_cpus = int(self.resources["CPU"] * self.num_workers)
        if self.starting is not None:
            self.starting.wait()
            if num_cpus > self.starting.num_cpus and self.placement.address is None:
                self.starting.take_workers()  # they end with it
                ray.shutdown()
        if ray.is_initialized() and self.starting is None:
            return
        if not ray.is_initialized():
            way = " or RayStrategy(address='auto')"
            check_crowd(self.num_workers, self.placement.address, way=way)
            connect(self.placement.address, num_cpus)
        compat_ray.print_rank_0_plainly()

    @contextmanager
    def _placement_group(self) -> Iterator[tuple[Any, list[Bundle]]]:
        """Find room for the workers; yield a placement group, and a bundle of it for each rank.

        The ranks of one node follow each other.
        """
        import ray
        from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group

        self.num_workers = self.requested_workers  # after a restart there may be room for all again
        if (own := get_current_placement_group()) is not None:  # a trial of Ray Tune: what it has is reserved already
            yield own, self._bundles_of_trial(own)
            return
        # All or nothing: workers that Ray places one by one can hold resources that two runs wait for in each other.
        group = self._early_group()
        if group is None:
            group = placement_group([self.resources] * self.num_workers, strategy=self.placement.placement)
        try:
            try:
                self._wait_for_resources(group)
            except ResourceError as error:
                if (fewer := self._reduced_num_workers()) is None:
                    raise
                warn_user(f"{error} The run continues with {fewer} workers (min_workers).")
                remove_placement_group(group)
                self.num_workers = fewer
                group = placement_group([self.resources] * fewer, strategy=self.placement.placement)
                self._wait_for_resources(group)
            self._placed_once = True
            yield group, _sorted_by_node(group, range(self.num_workers))
        except KeyboardInterrupt as interrupt:
            raise WorkerGroupError(interrupt) from None
        finally:
            if ray.is_initialized():
                remove_placement_group(group)

    def _bundles_of_trial(self, group: Any) -> list[Bundle]:
        """Return the bundles that a trial has for its workers: the last ones, a first may be for the trial itself."""
        specs = group.bundle_specs
        if len(specs) < self.num_workers:
            raise ResourceError(
                f"This trial of Ray Tune has resources for {len(specs)} workers, and its trainer asks for "
                f"{self.num_workers}. Reserve a bundle for each with tune.with_resources(function, "
                "tune.PlacementGroupFactory([{}] + [{'CPU': 1}] * workers)), or ask for fewer devices."
            )
        self.resources = {**dict(specs[-1])}
        self.resources.setdefault("CPU", 0)
        return _sorted_by_node(group, range(len(specs) - self.num_workers, len(specs)))

    def _wait_for_resources(self, group: Any) -> None:
        started = time.monotonic()
        while not group.wait(timeout_seconds=1):
            waited = time.monotonic() - started
            missing = self._missing_resources()
            if missing and waited > min(JOINING, self.placement.timeout):
                raise ResourceError(
                    f"{self.num_workers} Ray workers with {_resources_text(self.resources)} each cannot be placed "
                    f"({self.placement.placement}): {missing}. Waited {waited:.0f} s for nodes to join. Ask for fewer "
                    "workers (devices, num_nodes), for less in resources_per_worker, or start a larger cluster."
                )
            if waited > self.placement.timeout:
                raise ResourceError(
                    f"{self.num_workers} Ray workers with {_resources_text(self.resources)} each were not placed "
                    f"within {waited:.0f} s: the cluster has enough, but it is in use (`ray status` shows by whom). "
                    "Wait longer with RayStrategy(timeout=...), or ask for less."
                )

    def _missing_resources(self) -> str:
        """Say what the cluster as a whole lacks, or return an empty string."""
        import ray

        total = ray.cluster_resources()
        lacking = [
            f"asked for {amount * self.num_workers:g} {name}, the cluster has {total.get(name, 0):g}"
            for name, amount in self.resources.items()
            if amount * self.num_workers > total.get(name, 0)
        ]
        if lacking:
            return "; ".join(lacking)
        fitting = self._workers_per_node()
        if sum(fitting) < self.num_workers:
            return f"its {len(fitting)} nodes have room for {fitting} of them, as a worker does not span nodes"
        if self.placement.placement == "STRICT_PACK" and max(fitting) < self.num_workers:
            return f"asked for all on one node, and the largest of {len(fitting)} nodes has room for {max(fitting)}"
        if self.placement.placement == "STRICT_SPREAD" and sum(map(bool, fitting)) < self.num_workers:
            return f"asked for a node each, and {sum(map(bool, fitting))} nodes have room for one"
        return ""

    def _workers_per_node(self) -> list[int]:
        """Return for each node of the cluster how many workers have room on it."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [
            min((int(node.get(name, 0) / amount) for name, amount in self.resources.items() if amount), default=0)
            for node in nodes
        ]

    def _reduced_num_workers(self) -> int | None:
        """Return the number of workers with which a run that has lost some may continue; None if it may not."""
        least = self.placement.min_workers
        if least is None or not self._placed_once or not self._missing_resources():
            return None
        room = self._workers_per_node()
        most = {"STRICT_PACK": max(room, default=0), "STRICT_SPREAD": sum(map(bool, room))}
        fewer = min(most.get(self.placement.placement, sum(room)), self.requested_workers)
        return fewer if fewer >= least else None

    def _early_group(self) -> Any:
        """Return the placement group of workers that have been started for this run; None if there are no such."""
        early = self.starting.take_workers() if self.starting else None
        if early is None:
            return None
        now = self._environment()
        changed = early.variables.items() - now.items()
        # Libraries have read these; what else is new is read later.
        changed |= {(name, value) for name, value in now.items() if name in THREADS and name not in early.variables}
        fits = early.are_for(self.resources, self.num_workers, self.placement.placement)
        if not fits or self.placement.runtime_env or self.variables or changed:
            early.close()
            return None
        self._early = early
        return early.group

    def _actors(self, group: Any, bundles: Sequence[Bundle], variables: dict[str, str]) -> list[Any]:
        """Return an actor in each bundle: one that is there, or a new one."""
        early, self._early = self._early, None
        if early is not None and early.group is group:
            import ray

            actors = [early.actors[bundle] for bundle, _ in bundles]
            ray.get([actor.adopt.remote(sys.path, os.getcwd(), variables) for actor in actors])
            return actors
        if self.pool and (kept := self.pool.acquire(group, bundles, variables)) is not None:
            return kept
        numbers = [bundle for bundle, _ in bundles]
        return start_actors(group, numbers, self.resources, variables, self.placement.runtime_env)

    def _environment(self) -> dict[str, str]:
        """Return environment variables for the workers.

        They are set in the worker, not by Ray, which would have to start other processes than it keeps ready.
        """
        return {
            **forwarded_variables((*FORWARDED, *THREADS)),
            **self.variables,
            **self.placement.runtime_env.get("env_vars", {}),
        }

    def _rank_infos(self, actors: list[Any], nodes: list[str]) -> list[RankInfo]:
        import ray

        started = ray.get([actor.start.remote() for actor in actors])
        self.processes = [(node, pid) for node, (pid, _, _) in zip(nodes, started, strict=True)]
        _, main_address, main_port = started[0]
        # Ray gives no ranks. Bundles come sorted by node, so that local ranks count up within each: collectives that
        # work in two levels, and DeepSpeed and Horovod with them, rely on neighbors being on one node.
        distinct = list(dict.fromkeys(nodes))
        return [
            RankInfo(
                rank=rank,
                world_size=len(actors),
                local_rank=nodes[:rank].count(node),
                local_world_size=nodes.count(node),
                node_rank=distinct.index(node),
                num_nodes=len(distinct),
                main_address=main_address,
                main_port=main_port,
                launcher="Ray",
            )
            for rank, node in enumerate(nodes)
        ]

    def _wait(self, running: dict[Any, int], mailbox: str) -> list[Result]:
        """Wait for all actors; after the first failure give the others a moment, then raise it."""
        import ray

        results: list[Result] = []
        failures: list[Failure] = []
        lost: dict[int, BaseException] = {}
        pending = list(running)
        deadline: float | None = None
        while pending and (deadline is None or time.monotonic() < deadline):
            ready, pending = ray.wait(pending, timeout=0.5)
            while self._pending_signals:
                self.kill(self._pending_signals.pop())
            for reference in ready:
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    lost[running[reference]] = error
                else:
                    (failures if isinstance(outcome, Failure) else results).append(outcome)
            # The others wait in a collective for the one that failed and notice it by a closed connection at best: they
            # get a moment to run their hooks and to say what they know, and are ended by the caller.
            if deadline is None and (failures or lost):
                deadline = time.monotonic() + GRACE
        if lost and (left := Mailbox.pop(mailbox)) is not None:
            raise WorkerGroupError(left.exception())
        if lost:  # killed, or gone with its node; what the others report is that they have lost it
            rank, loss = next(iter(lost.items()))
            text = " ".join(line for line in str(loss).splitlines() if not line.startswith("\t"))  # ids of Ray's own
            raise WorkerGroupError(WorkerError(f"rank {rank} died without a Python exception: {text}"))
        if failures:
            first = min(failures, key=lambda failure: failure.time)
            raise WorkerGroupError(first.exception(), _trace(failures))
        return results


Bundle = tuple[int, str]
"""Number of a bundle in its placement group, and the id of the node that it is on."""


def _outcomes(ended: Iterable[Any]) -> Iterator[Result | Failure]:
    """Yield what actors have returned, but for those that were lost."""
    import ray

    for reference in ended:
        with suppress(ray.exceptions.RayError):
            yield ray.get(reference)


def _trace(outcomes: Iterable[Result | Failure]) -> bytes | None:
    """Return what the run has changed until it failed, if a worker that could tell has."""
    return next((one.trace for one in outcomes if one.trace is not None), None)


def _sorted_by_node(group: Any, bundles: Iterable[int]) -> list[Bundle]:
    """Return bundles with their nodes, so that those of one node follow each other."""
    from ray.util.placement_group import placement_group_table

    nodes = placement_group_table(group)["bundles_to_node_id"]
    order = list(dict.fromkeys(nodes[bundle] for bundle in bundles))
    return sorted(((bundle, nodes[bundle]) for bundle in bundles), key=lambda one: (order.index(one[1]), one[0]))


def _resources_text(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
