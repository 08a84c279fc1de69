"""Ray on this machine or a connection to a cluster, begun while the caller still imports torch and Lightning."""

from __future__ import annotations

# It registers what a fork does with its locks: imported by one thread while another one starts Ray, that would fail.
import concurrent.futures.thread  # noqa: F401
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from itwinai.compat import ray as compat_ray
from itwinai.errors import ResourceError
from itwinai.launchers.cpu_affinity import available_cores

if TYPE_CHECKING:
    from itwinai.launchers.ray_worker_pool import EarlyRayWorkers

log = logging.getLogger(__name__)

FORWARDED = (
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "CUBLAS_WORKSPACE_CONFIG",
    "WANDB_",
    "MLFLOW_",
    "ITWINAI_FULL_TRACEBACK",
    "ITWINAI_UNIFY_LIGHTNING",
    "ITWINAI_VERBOSE",
)
"""Beginnings of the names of the driver's environment variables that its actors get: what decides on the numbers, on
where they are logged, and on what is printed. The processes of a cluster that is running already were started without.
"""

CROWD = 8
"""Most workers that may share a core of this machine: to start more takes minutes, and Ray gives up."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Names of those that say with how many threads a process computes; Ray sets the first one by an actor's CPUs."""


def forwarded_variables(names: tuple[str, ...] = FORWARDED) -> dict[str, str]:
    """Return the environment variables of this process that its actors get.

    Args:
        names: beginnings of their names.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def check_crowd(workers: int, address: str | None, what: str = "workers", way: str = "") -> None:
    """Raise an error for more workers than this machine could even start, if Ray is going to be started on it.

    Args:
        workers: how many.
        address: of the cluster, if one is given; see `connect`.
        what: they are, for the error.
        way: how else to name a cluster, for the error.

    Raises:
        ResourceError: there are too many.
    """
    most = CROWD * available_cores()
    if address is None and "RAY_ADDRESS" not in os.environ and workers > most:
        raise ResourceError(
            f"{workers} {what} were requested, and Ray is started on this machine alone, which has "
            f"{available_cores():g} cores. Request at most {most:g}, or connect to a cluster with RAY_ADDRESS{way}."
        )


def connect(address: str | None, num_cpus: int, log_to_driver: bool = True) -> None:
    """Connect to a Ray cluster, or start Ray on this machine.

    Args:
        address: of the cluster; by default that of RAY_ADDRESS, and without one Ray is started here.
        num_cpus: logical CPUs that the workers need, if Ray is started here: they may share cores, as local
            processes may.
        log_to_driver: print here what actors print.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    # Ray says in warnings what it has started, and from which thread; the trainer announces its workers itself.
    if address:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
    else:
        num_cpus = max(os.cpu_count() or 1, num_cpus)
        with compat_ray.starting_quickly():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=log_to_driver,
            )


@dataclass(frozen=True)
class RayWorkersRequest:
    """What a command line or a config says about the Ray workers of its run, before anything heavy is imported.

    Attributes:
        num_workers: how many.
        on_cpu: whether they are asked not to use GPUs.
        early: whether they may import before the strategy has set its environment variables.
    """

    num_workers: int
    on_cpu: bool = False
    early: bool = True

    @classmethod
    def of(cls, num_workers: int, strategy: str, accelerator: Any) -> RayWorkersRequest:
        """Return the request for what a config names.

        Args:
            num_workers: how many.
            strategy: its name.
            accelerator: its name.
        """
        # DeepSpeed chooses its accelerator when it is imported.
        return cls(num_workers, on_cpu=accelerator == "cpu", early="deepspeed" not in strategy)


class StartingRay:
    """Ray that is being started in a thread.

    Args:
        num_cpus: see `connect`.
        address: see `connect`.
        log_to_driver: see `connect`.
        request: of workers to start as soon as Ray is there, if it has one node.
    """

    def __init__(
        self,
        num_cpus: int,
        address: str | None = None,
        log_to_driver: bool = True,
        request: RayWorkersRequest | None = None,
    ) -> None:
        self.num_cpus = num_cpus
        self.address = address
        self.log_to_driver = log_to_driver
        self.request = request
        self._workers: EarlyRayWorkers | None = None
        self._error: BaseException | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="itwinai-ray-start", daemon=True)
        self._thread.start()

    def __reduce__(self) -> tuple[Any, ...]:
        # The command line holds it, and travels to workers with its callbacks: there Ray has started.
        return type(None), ()

    def wait(self) -> None:
        """Wait until Ray is there.

        Raises:
            BaseException: any error of its start.
        """
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def take_workers(self) -> EarlyRayWorkers | None:
        """Return the workers that have been started, to whoever asks first; None if there are none."""
        self.wait()
        workers, self._workers = self._workers, None
        return workers

    def end(self) -> None:
        """Disconnect, and end what was started."""
        self._ready.wait()
        if self._error is None:
            import ray

            ray.shutdown()
        self._over.set()
        self._thread.join()

    def _start_workers(self, request: RayWorkersRequest) -> None:
        """Start workers, if they are on one node and leave room on it for tasks of the user's own.

        They import what every run needs, and no module of the user's: it may want to know its rank.
        """
        import ray

        from itwinai.launchers.ray_worker_pool import EarlyRayWorkers

        try:
            if sum(node["Alive"] for node in ray.nodes()) > 1:
                return
            # Ray that has just been started does not know yet what is free; there is a CPU more than its workers need.
            is_shared = self.address is not None or "RAY_ADDRESS" in os.environ
            if is_shared and ray.available_resources().get("CPU", 0) <= request.num_workers:
                return
            variables = forwarded_variables((*FORWARDED, *THREADS))
            self._workers = EarlyRayWorkers(request.num_workers, variables, request.on_cpu)
        except Exception as error:
            log.info("no Ray workers were started early, and the run starts its own: %s", error)

    def _run(self) -> None:
        try:
            early = self.request if self.request is not None and self.request.early else None
            more = 0 if early is None else 1  # for tasks before the run
            connect(self.address, self.num_cpus + more, self.log_to_driver)
            if early is not None:
                self._start_workers(early)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
        self._over.wait()  # the kernel ends Ray's processes together with the thread that has started them


@contextmanager
def ray_starting(request: RayWorkersRequest) -> Iterator[StartingRay]:
    """Begin to start Ray, and end it afterwards.

    Args:
        request: the workers that there will be, with one CPU each.

    Yields:
        What a `RayStrategy` waits for; see its method ``connect_by``.

    Raises:
        ResourceError: see `check_crowd`.
    """
    check_crowd(request.num_workers, None)
    starting = StartingRay(request.num_workers, request=request)
    try:
        yield starting
    finally:
        starting.end()
