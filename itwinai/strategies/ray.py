"""Workers that are Ray actors, around any of the other strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import Strategy

from itwinai.errors import ConfigurationError, require
from itwinai.launchers.ray import RayPlacement, RemoteGPUs
from itwinai.strategies.base import LaunchedStrategy
from itwinai.strategies.ddp import TorchDistributedStrategy

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class RayStrategy:
    """Train in Ray actors, from the driver's ``trainer.fit(...)``.

    It says where workers come from; how gradients meet says the strategy inside it. The trainer's ``devices`` times
    ``num_nodes`` is the number of workers. Inside a Ray Train worker nothing is launched: the trainer joins.

    Args:
        strategy: the strategy inside: ``"ddp"``, ``"deepspeed"`` (any stage), ``"horovod"``, or an instance.
        address: an existing cluster, as for ``ray.init``; by default the one of RAY_ADDRESS or of an earlier
            ``ray.init``, or else a Ray that is started on this machine, with as many CPUs as the workers ask for.
        placement: how workers are spread over nodes: PACK puts as many as possible on one node, SPREAD as few; the
            STRICT_ ones insist.
        resources_per_worker: by default ``{"CPU": 1}``, and ``{"GPU": 1}`` with GPUs. A fraction of a GPU, as 0.5,
            puts several workers on one; NCCL refuses that, so that gloo moves their data. Each worker uses one
            device: more than one GPU is an error.
        runtime_env: Ray's runtime environment of the workers.
        timeout: seconds to wait for busy resources. What the whole cluster does not have is waited for no longer than
            15 s, in case nodes are still joining it.
        min_workers: with the trainer's ``max_restarts``, how many workers may go on when a node is lost and the cluster
            has no room for all. By default all are needed. The global batch has to stay the same in mid-epoch:
            ``ItwinaiTrainer(split_batches=True)`` sees to that.

    Raises:
        ConfigurationError: a strategy that cannot be inside Ray, an unknown placement, or more than one GPU.
        MissingPackageError: Ray is not installed.
    """

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
        require("ray", "Install it with `pip install 'itwinai[ray]'`.", "The strategy 'ray'")
        self.strategy = strategy
        self.placement = RayPlacement(
            address=address,
            placement=placement,
            resources_per_worker=dict(resources_per_worker or {}),
            runtime_env=dict(runtime_env or {}),
            timeout=timeout,
            min_workers=min_workers,
        )

    def accelerator(self, accelerator: str | Accelerator) -> str | Accelerator:
        """Return the accelerator for the trainer: the driver itself needs no GPU.

        Args:
            accelerator: the one that the user asked for.
        """
        wants_gpu = accelerator in ("gpu", "cuda") or self.placement.resources_per_worker.get("GPU", 0) > 0
        return RemoteGPUs() if wants_gpu and not isinstance(accelerator, Accelerator) else accelerator

    def build(self) -> Strategy:
        """Return the strategy inside, with workers that are Ray actors."""
        from itwinai.strategies.registry import make_strategy

        inner = make_strategy(self.strategy) if isinstance(self.strategy, str) else self.strategy
        if not isinstance(inner, LaunchedStrategy) or not isinstance(inner, Strategy):
            raise ConfigurationError(
                f"The strategy inside Ray has to be one of itwinai's: ddp, deepspeed, horovod; not {self.strategy!r}."
            )
        fraction = self.placement.resources_per_worker.get("GPU", 0)
        if 0 < fraction < 1 and isinstance(inner, TorchDistributedStrategy):
            inner.backend = inner.backend or "gloo"
        inner.worker_source = self.placement
        inner.strategy_name = f"ray_{inner.strategy_name}"
        return inner
