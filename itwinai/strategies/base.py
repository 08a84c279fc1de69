"""What DDP, DeepSpeed and Horovod have in common: where their workers come from, and their place in the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed import ReduceOp

from itwinai import compat
from itwinai.launchers.environment import PlacedEnvironment, launcher_name
from itwinai.measure.steps import Communication, StepClock

if TYPE_CHECKING:
    from itwinai.launchers.base import PayloadLauncher


class WorkerSource(Protocol):
    """Makes the launcher of a strategy, once the number of workers is known."""

    def launcher(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        accelerator: str,
        variables: Mapping[str, str],
    ) -> PayloadLauncher | None:
        """Return the launcher, or None when a single worker can run in this process."""


class LocalProcesses:
    """The workers are processes of this machine; a single one is this process itself."""

    def launcher(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        accelerator: str,
        variables: Mapping[str, str],
    ) -> PayloadLauncher | None:
        if num_processes * num_nodes == 1:
            return None
        from itwinai.launchers.local import LocalLauncher

        return LocalLauncher(environment, num_processes, num_nodes, variables)


class LaunchedStrategy(compat.ConfiguresLauncher, compat.UnlistedParallelStrategy):
    """Mixin, before a parallel strategy of lightning: ranks come from the environment, workers from a source.

    Attributes:
        worker_source: where workers come from, unless an outer launcher has started this process as one.
    """

    worker_source: WorkerSource
    _weights: tuple[Callable[[int], float], ...] = ()
    strategy_name: str
    _nodes = 1

    @property
    def num_nodes(self) -> int:
        """Number of nodes, as the trainer was asked for."""
        return self._nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """Number of workers on each node, as the trainer was asked for."""
        return len(self.parallel_devices or ())

    def make_launcher(self) -> compat.Launcher | None:
        assert self.cluster_environment is not None
        if self.cluster_environment.creates_processes_externally:
            return None
        return self.worker_source.launcher(
            self.cluster_environment,
            self.num_processes,
            self.num_nodes,
            "cuda" if isinstance(self.accelerator, CUDAAccelerator) else "cpu",
            self.worker_variables(),
        )

    def worker_variables(self) -> dict[str, str]:
        """Return environment variables that this strategy's workers need before they import anything."""
        return {}

    def become_worker(self, environment: PlacedEnvironment) -> None:
        """Turn this strategy, unpickled in a new process, into the strategy of one worker.

        Args:
            environment: the worker's place in its group.
        """
        self.cluster_environment = environment
        self.drop_launcher()
        self.set_world_ranks()

    def set_world_ranks(self) -> None:
        """Take the ranks from whoever launched the workers; only a process started by hand has to compute them."""
        environment = self.cluster_environment
        if environment is None:
            return
        # lightning's own has no ranks but these, also where somebody has started every worker by hand, with LOCAL_RANK.
        if isinstance(environment, LightningEnvironment) or not environment.creates_processes_externally:
            environment.set_world_size(self.num_nodes * self.num_processes)
            environment.set_global_rank(environment.node_rank() * self.num_processes + environment.local_rank())
        compat.set_rank_zero(environment.global_rank())

    @property
    def root_device(self) -> torch.device:
        """The device of this worker."""
        assert self.parallel_devices
        # A scheduler that gives each worker only its own device makes that one number 0 everywhere.
        return self.parallel_devices[self.local_rank % len(self.parallel_devices)]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The size of the group and this worker's rank in it."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def weigh_batches(self, weight_of: Callable[[int], float]) -> None:
        """Weigh this worker's loss so that unequal parts of a global batch count by their samples.

        Averaging the gradients of workers averages over samples only if all have equally many, which the last global
        batch of an epoch often does not allow.

        Args:
            weight_of: gives the weight of the loss, which is taken to be a mean, by the index of the batch.
        """
        # A second training loader makes a step out of several batches, whose sizes do not weigh the loss as a whole.
        self._weights = (*self._weights, weight_of)

    def weigh_loss(self, loss: Tensor) -> Tensor:
        """Return this worker's loss weighed by its part of the global batch, as a tensor of torch's own class."""
        loss = compat.plain_tensor(loss)  # engines do arithmetic with it as well
        if len(self._weights) != 1:
            return loss
        assert self.lightning_module is not None
        weight = self._weights[0](self.lightning_module.trainer.fit_loop.batch_idx)
        return loss if weight == 1.0 else loss * weight

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(self.weigh_loss(closure_loss), *args, **kwargs)

    # The backward that is lightning's own after `weigh_loss`; the lean loop may run the two itself.
    lean_backward = backward

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce a tensor over all workers; return other objects as they are.

        The mean of integers is a floating-point number. Lightning's DDP cuts it to an integer, and thereby falsifies
        the epoch means of logged values as soon as workers have unequal numbers of samples.
        """
        is_mean = isinstance(reduce_op, str) and reduce_op.lower() in ("mean", "avg") or reduce_op == ReduceOp.AVG
        if isinstance(tensor, Tensor) and is_mean and not (tensor.is_floating_point() or tensor.is_complex()):
            tensor = tensor.to(torch.get_default_dtype())
        return super().reduce(tensor, group, reduce_op)  # type: ignore[safe-super]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, by rank; all workers have to call it."""
        if not dist.is_initialized():
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def parameter_names(self) -> list[list[list[str]]] | None:
        """Return the names of the parameters of each group of each optimizer, as the user's optimizers have them.

        None says that the optimizers hold the module's own parameters.
        """
        return None

    # ------------------------------------------------------------------------------------- what callbacks ask

    def time_communication(self, clock: StepClock) -> None:
        """Begin to measure how long workers wait for each other: tell the clock, or let the engine sum it up.

        Args:
            clock: that of the training steps.
        """

    def exchange_time(self) -> Communication | None:
        """Return how long the engine exchanges gradients during backward, if it is the engine that measures it."""
        return None

    def gradients(self) -> list[Tensor] | None:
        """Return the averaged gradients, right before the optimizer steps; None if the engine keeps them to itself."""
        assert self.lightning_module is not None
        return [p.grad for p in self.lightning_module.parameters() if p.grad is not None]

    def last_gradient_norm(self) -> float | None:
        """Return the norm of all gradients of the last step, if the engine has computed it."""
        return None

    def full_size(self, parameter: Tensor) -> int:
        """Return the number of elements of a parameter, all parts of it where workers share it."""
        return parameter.numel()

    def coordination_store(self) -> dist.Store | None:
        """Return the store by which the workers have found each other, or None if they have none."""
        return compat.default_store() if dist.is_initialized() else None

    def teardown(self) -> None:
        self._weights = ()
        super().teardown()

    def announce(self) -> None:
        """Say in one line, on rank 0, who launched how many workers, where, on which devices."""
        environment = self.cluster_environment
        assert environment is not None
        backend = self.describe_backend()
        rank_zero_info(
            f"itwinai: {self.world_size} worker{'s' * (self.world_size > 1)} launched by "
            f"{launcher_name(environment)}, rank 0 at {environment.main_address}:{environment.main_port}, "
            f"device {self.root_device}, strategy {self.strategy_name} ({backend})"
        )

    def describe_backend(self) -> str:
        """Return what moves the data between workers, for the line that announces the run."""
        return "gloo"
