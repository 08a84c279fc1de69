"""Workers that are Ray actors, around any of the other strategies."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import Strategy
from typing_extensions import override

from itwinai.errors import ConfigurationError, require
from itwinai.launchers.ray import RayLauncher, RayPlacement, RemoteGPUs
from itwinai.launchers.ray_init import StartingRay
from itwinai.launchers.ray_worker_pool import RayWorkerPool
from itwinai.strategies.base import LaunchedStrategy
from itwinai.strategies.ddp import TorchDistributedStrategy
from itwinai.strategies.options import refuses_unknown
from itwinai.strategies.registry import INSTALL, make_strategy

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class RayStrategy(LaunchedStrategy):
    """Train in Ray actors, from the driver's ``trainer.fit(...)``.

    It says where workers come from; the strategy inside says how their gradients are averaged. The object is of both
    classes: ``RayStrategy("deepspeed")`` is a `RayStrategy` and a `DeepSpeedStrategy`. The trainer's ``devices`` times
    ``num_nodes`` is the number of workers. Inside a Ray Train worker nothing is launched: the trainer joins.

    Args:
        strategy: the strategy inside: ``"ddp"``, ``"deepspeed"`` (any stage), ``"horovod"``, or an instance.
        address: an existing cluster, as for ``ray.init``; by default that of RAY_ADDRESS or of an earlier
            ``ray.init``. Without one, Ray is started on this machine with the CPUs that the workers request.
        placement: how to spread workers over nodes: ``PACK`` puts as many as possible on one node, ``SPREAD`` as few.
            ``STRICT_PACK`` and ``STRICT_SPREAD`` fail if that is not possible.
        resources_per_worker: by default ``{"CPU": 1}``, and ``{"GPU": 1}`` with GPUs. A fraction of a GPU, e.g. 0.5,
            puts several workers on one GPU; they use gloo, as NCCL does not support that. Each worker uses one device:
            more than one GPU is an error.
        runtime_env: Ray's runtime environment of the workers.
        timeout: seconds to wait for busy resources. Resources that the cluster does not have at all are waited for at
            most 15 s, in case nodes are still joining.
        min_workers: with the trainer's ``max_restarts``, the number of workers to continue with when a node is lost
            and the cluster has no room for all. By default all are needed. Use it with
            ``ItwinaiTrainer(split_batches=True)``, which keeps the global batch the same in mid-epoch.

    Raises:
        UnknownArgumentError: an argument is unknown.
        ConfigurationError: a strategy that cannot be inside Ray, an unknown placement, or more than one GPU.
        MissingPackageError: Ray is not installed.
    """

    placement: RayPlacement

    @refuses_unknown
    def __init__(
        self,
        strategy: str | Strategy = "ddp",
        *,
        address: str | None = None,
        placement: Placement = "PACK",
        resources_per_worker: Mapping[str, float] | None = None,
        runtime_env: dict[str, Any] | None = None,
        timeout: float = 300.0,
        min_workers: int | None = None,
    ) -> None:
        require("ray", f"Install it with `{INSTALL['ray']}`.", "The strategy 'ray'")
        inner = make_strategy(strategy) if isinstance(strategy, str) else strategy
        if not isinstance(inner, LaunchedStrategy) or isinstance(inner, RayStrategy):
            raise ConfigurationError(
                f"The strategy inside Ray must be one of itwinai's (ddp, deepspeed, horovod); got {strategy!r}."
            )
        # Most of what a strategy does is the work of the one inside, and Lightning and callbacks ask for it by class.
        # So this object becomes one of both classes, instead of passing on every call and attribute.
        vars(self).update(vars(inner))
        self.__class__ = _class_around(type(self), type(inner))
        self.worker_source = self.placement = RayPlacement(
            address=address,
            placement=placement,
            resources_per_worker=dict(resources_per_worker or {}),
            runtime_env=dict(runtime_env or {}),
            timeout=timeout,
            min_workers=min_workers,
        )
        fraction = self.placement.resources_per_worker.get("GPU", 0)
        if 0 < fraction < 1 and isinstance(self, TorchDistributedStrategy):
            self.backend = self.backend or "gloo"  # NCCL refuses workers that share a GPU

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is created here and has no name by which pickle could import it.
        return _bare, type(self).__bases__, self.__getstate__()

    @override
    def reuse_workers(self, pool: RayWorkerPool) -> None:
        if isinstance(self.launcher, RayLauncher):
            self.launcher.pool = pool

    def connect_by(self, starting: StartingRay) -> None:
        """Let the first launch wait for Ray, which is starting already, instead of starting it.

        Args:
            starting: from `itwinai.launchers.ray_init.ray_starting`.
        """
        if isinstance(self.launcher, RayLauncher):
            self.launcher.starting = starting

    # Lightning declares these abstract; the strategy inside has them.

    @override
    def barrier(self, name: str | None = None) -> None:
        super().barrier(name)  # type: ignore[safe-super]

    @override
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return super().broadcast(obj, src)  # type: ignore[safe-super]

    @override
    def model_to_device(self) -> None:
        super().model_to_device()  # type: ignore[safe-super]

    def accelerator_for(self, accelerator: str | Accelerator) -> str | Accelerator:
        """Return the accelerator for the trainer: the driver itself needs no GPU.

        Args:
            accelerator: the trainer's argument.
        """
        wants_gpu = accelerator in ("gpu", "cuda") or self.placement.resources_per_worker.get("GPU", 0) > 0
        return RemoteGPUs() if wants_gpu and not isinstance(accelerator, Accelerator) else accelerator


def _bare(ray_class: type[RayStrategy], inner_class: type[LaunchedStrategy]) -> RayStrategy:
    """Return an object of both classes without any attributes, as for pickle."""
    made: RayStrategy = object.__new__(_class_around(ray_class, inner_class))
    return made


@functools.cache
def _class_around(ray_class: type[RayStrategy], inner_class: type[LaunchedStrategy]) -> type[RayStrategy]:
    names = {
        "strategy_name": f"ray_{inner_class.strategy_name}",
        "__doc__": ray_class.__doc__,
        "__module__": ray_class.__module__,
    }
    return type(ray_class.__name__, (ray_class, inner_class), names)
