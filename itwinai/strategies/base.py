"""What DDP, DeepSpeed and Horovod have in common: where their workers come from, and their ranks in the group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed import ReduceOp
from torchmetrics import Metric
from typing_extensions import override

from itwinai.checkpoints.state import parts_of_workers
from itwinai.compat import lightning_dataloaders, lightning_launching, lightning_trainer
from itwinai.compat import torch as compat_torch
from itwinai.compat import torchmetrics as compat_torchmetrics
from itwinai.data.rank_streams import RankStreams
from itwinai.data.weights import StepWeights, check_drawn, sampler_of
from itwinai.errors import ConfigurationError, MetricMergeError
from itwinai.interfaces import WorkerSource
from itwinai.launchers.cpu_affinity import available_cores, oversubscription_text, own_cores
from itwinai.launchers.environment import PlacedEnvironment, WorkerKind, launcher_name
from itwinai.launchers.payload import FinalState
from itwinai.loops.torchmetrics_sync import MetricSync
from itwinai.profiling.step_timer import Communication, StepClock
from itwinai.strategies import drift
from itwinai.strategies.backward import Change, ParameterMonitor, shortened
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from itwinai.launchers.base import PayloadLauncher
    from itwinai.launchers.ray_worker_pool import RayWorkerPool

# Of a larger model the optimizers' states stay with the workers: 2 GiB in fp32.
MOST_STATE_ELEMENTS = 2**29

BINDING = ("srun", "mpirun", "jsrun")
"""Launchers that may give each worker cores of its own."""


class LocalProcesses:
    """The workers are processes of this machine; a single one is this process itself.

    Args:
        kind: how they are started; see the argument ``launcher`` of `ItwinaiTrainer`.

    Raises:
        ConfigurationError: there is no such kind of worker.
    """

    def __init__(self, kind: WorkerKind = "auto") -> None:
        if kind not in get_args(WorkerKind):
            names = ", ".join(get_args(WorkerKind))
            raise ConfigurationError(f"launcher={kind!r} is unknown; choose one of {names}.")
        self.kind: WorkerKind = kind

    def launcher(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        accelerator: str,
        variables: Mapping[str, str],
    ) -> PayloadLauncher | None:
        """Return the launcher for this machine; None if this process is the only worker."""
        if num_processes * num_nodes == 1:
            return None
        from itwinai.launchers.local import LocalLauncher

        return LocalLauncher(environment, num_processes, num_nodes, variables, self.kind)


class LaunchedStrategy(lightning_launching.ConfiguresLauncher, lightning_launching.UnlistedParallelStrategy):
    """Mixin, before a parallel strategy of Lightning: ranks come from the environment, workers from a source.

    Attributes:
        worker_source: where workers come from, unless an outer launcher has started this process as one.
        final_state: what the last run of a launched worker leaves for the calling process.
        check_drift: compare the parameters of all ranks after each epoch, which reads each of them once and exchanges
            two numbers. Turn it off for ranks that differ on purpose.
    """

    worker_source: WorkerSource
    final_state: FinalState = FinalState()
    _is_launched = False
    _weights: StepWeights | None = None
    _random_numbers: RankStreams | None = None
    strategy_name: str
    check_drift: bool = True
    _watch: ParameterMonitor | None = None
    _epoch: int | None = None
    _agreements = 0
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

    @override
    def make_launcher(self) -> lightning_launching.Launcher | None:
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

    def accelerator_for(self, accelerator: str | Accelerator) -> str | Accelerator:
        """Return the accelerator that the trainer uses for its argument.

        Args:
            accelerator: the trainer's argument.
        """
        return accelerator

    def use_launcher(self, kind: WorkerKind) -> None:
        """Choose how the workers of this machine are started.

        Raises:
            ConfigurationError: there is no such kind of worker, or the workers come from elsewhere.
        """
        if not isinstance(self.worker_source, LocalProcesses):
            if kind in ("auto", "payload"):
                return
            raise ConfigurationError(
                f"launcher={kind!r} is for workers of this machine, but Ray starts the workers of the strategy "
                f"'{self.strategy_name}' and sends them the trainer as a payload. Remove launcher."
            )
        self.worker_source = LocalProcesses(kind)

    def reuse_workers(self, pool: RayWorkerPool) -> None:
        """Use workers from a pool, and leave them there for the next run; only those of Ray outlive one.

        Args:
            pool: of the search that this run is a trial of.
        """

    def worker_variables(self) -> dict[str, str]:
        """Return environment variables that this strategy's workers need before they import anything."""
        return {}

    def worker_imports(self) -> tuple[str, ...]:
        """Return names of modules to import once, before workers become copies of the process that has them."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        # Those of the last fit are there for the script to look at.
        return {**super().__getstate__(), "_optimizers": [], "lr_scheduler_configs": []}

    def become_worker(self, environment: PlacedEnvironment) -> None:
        """Turn this strategy, unpickled in a new process, into the strategy of one worker.

        Args:
            environment: the worker's ranks in its group.
        """
        self.cluster_environment = environment
        self.final_state, self._is_launched = FinalState(), True
        self.optimizers, self.lr_scheduler_configs = [], []
        self.drop_launcher()
        self.set_world_ranks()

    def set_world_ranks(self) -> None:
        """Get the ranks from the launcher of the workers; only a process started by hand has to compute them."""
        environment = self.cluster_environment
        if environment is None:
            return
        # Lightning's own has no ranks but these, also where someone has started every worker by hand, with LOCAL_RANK.
        if isinstance(environment, LightningEnvironment) or not environment.creates_processes_externally:
            environment.set_world_size(self.num_nodes * self.num_processes)
            environment.set_global_rank(environment.node_rank() * self.num_processes + environment.local_rank())
        lightning_launching.set_rank_zero(environment.global_rank())

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

    def weigh_batches(self, weights: StepWeights) -> None:
        """Weigh this worker's loss so that unequal parts of a global batch count by their samples.

        Averaging the gradients of workers averages over samples only if all have equally many, which the last global
        batch of an epoch often does not allow.

        Args:
            weights: give the weight of the loss, which is taken to be a mean, by the index of the batch.
        """
        self._weights = weights

    def batch_weight(self) -> float:
        """Return the weight of this worker's part of the global batch in work."""
        if self._weights is None:
            return 1.0
        assert self.lightning_module is not None
        return self._weights(self.lightning_module.trainer.fit_loop.batch_idx)

    def weigh_loss(self, loss: Tensor) -> Tensor:
        """Return this worker's loss weighed by its part of the global batch, as a tensor of torch's own class."""
        loss = compat_torch.plain_tensor(loss)  # engines do arithmetic with it as well
        weight = self.batch_weight()
        return loss if weight == 1.0 else loss * weight

    def on_train_start(self) -> None:
        """Begin to train: every worker is here, after the hooks of the user."""
        super().on_train_start()
        if self._weights is not None:
            self._weights.check()
        self.random_numbers.begin()

    @override
    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._begin_to_draw()

    @override
    def on_validation_end(self) -> None:
        super().on_validation_end()
        self._end_to_draw()

    @override
    def on_test_start(self) -> None:
        super().on_test_start()
        self._begin_to_draw()

    @override
    def on_test_end(self) -> None:
        super().on_test_end()
        self._end_to_draw()

    @override
    def on_predict_start(self) -> None:
        super().on_predict_start()
        self._begin_to_draw()

    @override
    def on_predict_end(self) -> None:
        super().on_predict_end()
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        loaders = lightning_dataloaders.prediction_loaders(trainer)
        for loader, batches in zip(loaders, trainer.predict_loop.max_batches, strict=True):
            # The worker that has most batches does not begin a loader at the end that has none.
            if batches and (sampler := sampler_of(loader)) is not None:
                check_drawn(loader, sampler)
        self._end_to_draw()

    def _begin_to_draw(self) -> None:
        if not lightning_trainer.is_fitting(self.lightning_module):
            self.random_numbers.begin()

    def _end_to_draw(self) -> None:
        if not lightning_trainer.is_fitting(self.lightning_module):
            self.random_numbers.end()

    @property
    def random_numbers(self) -> RankStreams:
        """The streams of random numbers of this worker."""
        if self._random_numbers is None:
            self._random_numbers = RankStreams(self.global_rank, self.world_size, self.broadcast)
        return self._random_numbers

    @override
    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(self.weigh_loss(closure_loss), *args, **kwargs)

    # The backward that is Lightning's own after `weigh_loss`; the lean loop may run the two itself.
    lean_backward = backward

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce a tensor over all workers; return other objects as they are.

        The mean of integers is a floating-point number. Lightning's DDP truncates it to an integer, which falsifies the
        epoch means of logged values as soon as workers have unequal numbers of samples.
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
        """Begin to measure how long workers wait for each other: report to the clock, or let the engine sum it up.

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
        """Return the store of the process group, or None if there is no group."""
        return compat_torch.default_store() if dist.is_initialized() else None

    def collect_final_state(self) -> None:
        """Collect what the caller cannot have otherwise, while the workers are still connected; all have to call it."""
        module = self.lightning_module
        # After an exception the other workers may be gone.
        if not self._is_launched or module is None or module.trainer.state.status == TrainerStatus.INTERRUPTED:
            return
        self._is_launched = False  # once per run
        self.final_state = FinalState(self._checkpoint_parts(module.trainer), self._metric_states(module))

    def _checkpoint_parts(self, trainer: Trainer) -> dict[str, Any] | None:
        if trainer.state.fn != TrainerFn.FITTING or self._state_elements(trainer) > MOST_STATE_ELEMENTS:
            return None
        parts = parts_of_workers(trainer, self.gather_objects, self.parameter_names())
        return move_data_to_device(parts, torch.device("cpu")) if self.is_global_zero else None

    def _state_elements(self, trainer: Trainer) -> int:
        """Return about how many numbers the optimizers' states have: Adam has two for each parameter."""
        sizes = [self.full_size(parameter) for parameter in trainer.lightning_module.parameters()]
        return 2 * sum(sizes)

    def _metric_states(self, module: LightningModule) -> dict[str, dict[str, Any]]:
        """Return what the metrics have accumulated on all workers together."""
        metrics = {name: metric for name, metric in module.named_modules() if isinstance(metric, Metric)}
        if not metrics:
            return {}
        own = {name: compat_torchmetrics.is_updated(metric) for name, metric in metrics.items()}
        own |= {name: None for name, metric in metrics.items() if compat_torchmetrics.is_synced(metric)}
        states: dict[str, dict[str, Any]] = {}
        everyone = self.gather_objects(own)
        anywhere = {
            name
            for name in metrics
            if any(one.get(name) for one in everyone) and all(one.get(name) is not None for one in everyone)
        }
        with MetricSync(module.trainer).merging():
            for name in (name for name in metrics if name in anywhere):  # in the same order on all workers
                # One that cannot be merged was an error where it was computed; here no code needs its value.
                with suppress(MetricMergeError), metrics[name].sync_context():
                    states[name] = compat_torchmetrics.metric_state(metrics[name])
        return states

    # ------------------------------------------------------------------------------- what workers have in common

    def check_parameter_changes(self, watch: ParameterMonitor) -> Change | None:
        """Look for parameters that were added, replaced, frozen or unfrozen since the last step, on all workers alike.

        Args:
            watch: what follows them.

        Returns:
            What has changed, which may be nothing in the first step of an epoch; None where there was no need to look.

        Raises:
            DriftError: the workers do not train the same parameters, or learn at different rates.
        """
        assert self.lightning_module is not None
        epoch = self.lightning_module.trainer.current_epoch
        begins = epoch != self._epoch
        if not begins and not watch.may_have_changed():
            return None
        change = watch.look()
        if not begins and not change:
            return None
        self.check_same_parameters(watch.parameters, together=begins)
        self._epoch = epoch
        return change

    def check_same_parameters(self, parameters: Mapping[str, Tensor], together: bool) -> None:
        """Check that all workers train the same parameters, at the same learning rates.

        Args:
            parameters: all of the module, by name.
            together: whether all workers are known to come here at the same time.

        Raises:
            DriftError: they do not.
        """
        if self.world_size == 1:
            return
        trained = {name: tuple(parameter.shape) for name, parameter in parameters.items() if parameter.requires_grad}
        mine = (trained, drift.learning_rates(self.optimizers) if self.check_drift else [])
        assert self.lightning_module is not None
        if together:
            drift.compare_trained(self.gather_objects(mine), self.lightning_module.trainer)
            return
        self._agreements += 1
        store = dist.PrefixStore(f"itwinai/parameters/{self._agreements}", compat_torch.default_store())
        drift.compare_trained(
            drift.gather(store, self.global_rank, self.world_size, mine), self.lightning_module.trainer
        )

    def refuse_parameters_made_in_step(self, watch: ParameterMonitor) -> None:
        """Refuse parameters that a training step has created: each worker has drawn different values for them.

        Raises:
            ConfigurationError: there are some.
        """
        late = watch.new()
        if late and self.world_size > 1:
            raise ConfigurationError(
                f"{shortened(late)} were created or replaced in training_step, so each rank has different values. "
                "Create parameters before the step, in __init__, configure_model, on_train_start or "
                "on_train_epoch_start, where all ranks get those of rank 0."
            )

    def compare_ranks(self) -> None:
        """Check that all ranks hold the same parameters and learn at the same rates; all have to call it.

        Raises:
            DriftError: they do not.
        """
        if self.check_drift and self.world_size > 1:
            assert self.lightning_module is not None
            drift.compare(self.lightning_module, self.optimizers, self)

    @override
    def on_train_end(self) -> None:
        self.compare_ranks()
        super().on_train_end()
        self.random_numbers.end()

    @override
    def teardown(self) -> None:
        self.collect_final_state()
        self._weights = self._random_numbers = None
        if self._watch is not None:
            self._watch.end()
        self._watch = self._epoch = None
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
        self._warn_of_crowding()

    def _warn_of_crowding(self) -> None:
        """Warn on rank 0 if the workers of its node compute with more threads than there are cores for them."""
        environment = self.cluster_environment
        workers = self.num_processes
        if isinstance(environment, PlacedEnvironment):
            workers = environment.rank_info.local_world_size
        if (
            environment is not None
            and launcher_name(environment) in BINDING
            and len(own_cores()) < (os.cpu_count() or 1)
        ):
            workers = 1  # bound to cores of its own
        if text := oversubscription_text(workers, workers * torch.get_num_threads(), available_cores()):
            warn_user(text)

    def describe_backend(self) -> str:
        """Return what moves the data between workers, for the line that announces the run."""
        return "gloo"
