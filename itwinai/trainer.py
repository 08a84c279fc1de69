"""`ItwinaiTrainer`: lightning's Trainer, with the framework that trains chosen by one flag."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader

from itwinai import compat
from itwinai.callbacks.defaults import check_finders, follow_module, with_defaults
from itwinai.checkpoints.find import AUTO
from itwinai.checkpoints.plugin import PortableCheckpointIO, PortableConnector, gather_of
from itwinai.data.samplers import DealtBatchSampler, DealtSampler, WholeSampler
from itwinai.data.streams import Stateful, StreamLoader
from itwinai.errors import ConfigurationError
from itwinai.launchers.environment import find_outer_environment, is_requeued_job, launcher_name
from itwinai.loggers.guard import hide_secrets
from itwinai.loggers.names import make_loggers
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.results import LeanLoggerConnector
from itwinai.loops.training import LeanTrainingEpochLoop
from itwinai.strategies.base import LaunchedStrategy
from itwinai.strategies.ray import RayStrategy
from itwinai.strategies.registry import make_strategy
from itwinai.trials.session import find_session
from itwinai.unify import refuse_foreign


def _raising_launch_failure(entry_point: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an entry point of lightning's Trainer so that what failed in the workers is raised on the caller."""

    @functools.wraps(entry_point)
    def wrapped(self: ItwinaiTrainer, *args: Any, **kwargs: Any) -> Any:
        check_finders(self)
        refuse_foreign(*args, *kwargs.values())
        self._fit_began = time.time()
        try:
            with _cpu_threads(self.cpu_threads):
                returned = entry_point(self, *args, **kwargs)
            self.raise_launch_failure()
        except SIGTERMException as stopped:
            # lightning leaves the code out, and a scheduler would take the run for a finished one.
            stopped.code = stopped.code or 128 + getattr(stopped, "signum", signal.SIGTERM)
            raise
        finally:
            self._portable().since = 0.0
        return returned

    return wrapped


@contextmanager
def _cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with so many threads meanwhile; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_environment_defaults(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap the trainer's constructor: what is not given comes from variables such as PL_TRAINER_DEVICES, if set."""

    @functools.wraps(init)
    def wrapped(self: ItwinaiTrainer, **kwargs: Any) -> None:
        init(self, **{**compat.trainer_arguments_from_environment(), **kwargs})

    return wrapped


class MisconfiguredTrainerError(ConfigurationError, MisconfigurationException):
    """A `ConfigurationError` that code written for lightning catches as its `MisconfigurationException`."""


class ItwinaiTrainer(Trainer):
    """Train any LightningModule, unchanged, on DDP, DeepSpeed, Horovod or Ray.

    Takes every argument of `lightning.pytorch.Trainer`; those that differ are below.

    Args:
        strategy: a name (``ddp``, ``deepspeed``, ``deepspeed_stage_0`` to ``_3``, ``horovod``, ``ray``, ``ray_ddp``,
            ``ray_deepspeed``, ``ray_horovod``, or any that lightning knows), or an instance of a class from
            `itwinai.strategies` for options that a name cannot carry. ``auto`` is DDP for several workers.
        devices: number of workers on each node, or which devices they use, as in lightning.
        num_nodes: number of nodes.
        logger: as in lightning; or a name (``csv``, ``jsonl``, ``tensorboard``, ``mlflow``, ``wandb``,
            ``provenance``), or several with commas between. By name a logger needs no server, and writes below
            ``default_root_dir``. Whichever it is, secrets among the hyperparameters do not reach it.
        accelerator: ``auto``, ``cpu``, ``gpu``... as in lightning.
        plugins: as in lightning.
        use_distributed_sampler: deal the batches of DataLoaders out to the workers, so that global batch k holds the
            samples that batch k of a single process would hold. Off, every worker iterates its loaders as they are.
        max_restarts: how often the workers of a fit are started again when one of them dies: killed, out of memory,
            its node lost. They go on from the newest valid checkpoint of this run. An exception of the user's code
            ends the run.
        resume: what ``fit`` goes on from if it is not given ``ckpt_path``: a path, or ``"auto"`` for the newest valid
            checkpoint in the folders of this trainer's checkpoint callbacks, if there is one. In a job that SLURM has
            queued again, ``"auto"`` is the default.
        preemption_signals: signals upon which all workers stop before the same batch and save a checkpoint. The exit
            code is 128 plus the signal's number. A second one, more than a second later, ends the run at once.
        watch: log what every run should have, sample the system, profile the steps, and tell all about it at the end:
            adds the callbacks `LoggingCallback`, `SystemMonitor`, `ProfilingCallback` and `RunSummary`, as far as they
            are not among ``callbacks``.
        cpu_threads: threads that torch computes with in each worker. By default the workers share the machine's cores.
            Sums in another number of threads may round differently.
        split_batches: take a DataLoader's batch size as that of the global batch, and divide it among the workers.
            By default it is the batch size of each worker, as in lightning.
        **kwargs: all other arguments of lightning's Trainer.

    Raises:
        ConfigurationError: the strategy is unknown, or the flags contradict each other or the outer launcher.
        MissingPackageError: the package behind the strategy is not installed.
    """

    @_with_environment_defaults
    def __init__(
        self,
        *,
        strategy: str | Strategy | RayStrategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        logger: Logger | Iterable[Logger] | bool | str | Sequence[str] | None = None,
        accelerator: str | Accelerator = "auto",
        plugins: compat.PluginInput | list[compat.PluginInput] | None = None,
        use_distributed_sampler: bool = True,
        split_batches: bool = False,
        max_restarts: int = 0,
        resume: str | os.PathLike[str] | None = None,
        preemption_signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        watch: bool = False,
        cpu_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        if split_batches and not use_distributed_sampler:
            raise MisconfiguredTrainerError(
                "split_batches=True divides the batches of DataLoaders among the workers, and "
                "use_distributed_sampler=False says that DataLoaders stay as they are. Choose one."
            )
        if max_restarts < 0:
            raise MisconfiguredTrainerError(f"max_restarts={max_restarts} is the number of restarts: 0 or more.")
        self.split_batches = split_batches
        if cpu_threads is not None and cpu_threads < 1:
            raise MisconfiguredTrainerError(f"cpu_threads={cpu_threads} is a number of threads: 1 or more.")
        self.max_restarts = max_restarts
        self.cpu_threads = cpu_threads
        self._fit_began = 0.0
        self.preemption_signals = [_signal(name) for name in preemption_signals]
        self.launch_failure: BaseException | None = None
        self.report_failure: Callable[[BaseException], None] | None = None
        plugin_list = list(plugins) if isinstance(plugins, Iterable) else [] if plugins is None else [plugins]
        environment = _given_environment(plugin_list, strategy)
        launched = None if environment else find_outer_environment()
        if launched is not None:
            _check_group_size(launched, devices, num_nodes)
        # Named in any case, so that lightning does not take an interactive SLURM allocation for a launcher.
        environment = environment or launched or LightningEnvironment()
        if strategy == "auto" and (
            launched.world_size() > 1 if launched else compat.selects_ddp(accelerator, devices, num_nodes)
        ):
            strategy = "ddp"
        if isinstance(strategy, str):
            strategy = make_strategy(strategy) or strategy
        if isinstance(strategy, RayStrategy):
            accelerator = strategy.accelerator(accelerator)
            strategy = strategy.build()
        _check_gpus(accelerator, devices)
        if environment not in plugin_list and getattr(strategy, "cluster_environment", None) is None:
            plugin_list.append(environment)
        if kwargs.get("default_root_dir") is None and (session := find_session()) is not None:
            kwargs["default_root_dir"] = session.folder  # trials that run at the same time would write to one place
        loggers = _loggers(logger, kwargs.get("default_root_dir"))
        given = kwargs.get("callbacks")
        for value in (given, logger, strategy, plugins, kwargs.get("profiler")):
            refuse_foreign(*(value if isinstance(value, (list, tuple)) else [value]))
        if not kwargs.get("barebones"):
            kwargs["callbacks"] = with_defaults(given, kwargs, watch, loggers)
        super().__init__(
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            plugins=plugin_list,
            use_distributed_sampler=use_distributed_sampler,
            logger=loggers,
            **kwargs,
        )
        follow_module(self, given)
        for one in self.loggers:
            hide_secrets(one)
        compat.replace_dataloader_preparation(self, self.prepare_dataloader)
        compat.replace_checkpoint_connector(self, PortableConnector)
        if resume is None and is_requeued_job():
            resume = AUTO
        self._portable().resume = None if resume is None else os.fspath(resume)
        if _writes_whole_files(self.strategy) and type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = PortableCheckpointIO()
        if lightning.__version__ in compat.VERIFIED_LOOPS:
            compat.replace_signal_connector(self)
            compat.signal_connector(self).others = tuple(self.preemption_signals)
            compat.replace_logger_connector(self, LeanLoggerConnector)
            compat.replace_training_epoch_loop(self, LeanTrainingEpochLoop)
            compat.replace_evaluation_loops(self, LeanEvaluationLoop)
        else:
            rank_zero_warn(
                f"itwinai's loops were compared with those of lightning {', '.join(compat.VERIFIED_LOOPS)}, and not "
                f"yet with those of {lightning.__version__}: lightning's own run, which are slower."
            )

    fit = _raising_launch_failure(Trainer.fit)
    validate = _raising_launch_failure(Trainer.validate)
    test = _raising_launch_failure(Trainer.test)
    predict = _raising_launch_failure(Trainer.predict)

    def raise_launch_failure(self) -> None:
        """Raise what ended the workers of the last launch, if it did not end well."""
        error, self.launch_failure = self.launch_failure, None
        if error is None:
            return
        compat.mark_interrupted(self)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(1)  # as lightning ends a local run on Ctrl-C
        raise error

    def _resumable_stream(self, dataloader: DataLoader) -> DataLoader:
        """Return a loader of an iterable dataset that goes on in mid-epoch, if its dataset can."""
        if type(dataloader) is not DataLoader or dataloader.num_workers or not isinstance(dataloader.dataset, Stateful):
            return dataloader
        loader = compat.with_class(dataloader, StreamLoader)
        loader.consumed = lambda: self.fit_loop.epoch_loop.batch_progress.current.ready
        loader.gather = gather_of(self.strategy)
        loader.rank = self.global_rank
        return loader

    def prepare_restart(self) -> None:
        """Let the next workers go on from the newest checkpoint that was written since the first were started."""
        self._portable().since = self._fit_began

    def _portable(self) -> PortableConnector:
        connector = compat.checkpoint_connector(self)
        assert isinstance(connector, PortableConnector)
        return connector

    def abort(self, error: BaseException) -> None:
        """End this worker because of an error that its main thread, which waits for another worker, cannot raise.

        Args:
            error: what the user shall see.
        """
        if self.report_failure is not None:
            self.report_failure(error)
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)

    def prepare_dataloader(self, dataloader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        """Let a DataLoader give this worker its part of every global batch.

        Args:
            dataloader: the user's loader.
            stage: the stage that the loader is for.
            map_style: whether the dataset has indices to deal out. An iterable dataset has not: every worker
                iterates it whole, or its own part, as the dataset decides.

        Raises:
            ConfigurationError: the batch size cannot be divided among the workers.
        """
        if self.split_batches:
            _check_divisible(dataloader, self.world_size)
        if not map_style:
            if self.split_batches and dataloader.batch_size is not None:
                dataloader = compat.with_batch_size(dataloader, dataloader.batch_size // self.world_size)
            return self._resumable_stream(dataloader) if stage == RunningStage.TRAINING else dataloader
        if self.world_size == 1 and stage != RunningStage.PREDICTING:
            return _resumable(dataloader) if stage == RunningStage.TRAINING else dataloader
        options: dict[str, Any] = {
            "num_replicas": self.world_size,
            "rank": self.global_rank,
            "lockstep": stage != RunningStage.PREDICTING,
            "lend": stage != RunningStage.TRAINING,
            "broadcast": self.strategy.broadcast,
        }
        if dataloader.batch_sampler is None:
            dealt: DealtSampler | DealtBatchSampler = DealtSampler(dataloader.sampler, **options)
        else:
            batches = dataloader.batch_sampler
            if stage == RunningStage.PREDICTING and type(batches) is BatchSampler:  # lightning drops none either
                batches = BatchSampler(batches.sampler, batches.batch_size, drop_last=False)
            dealt = DealtBatchSampler(batches, split=self.split_batches, **options)
        if stage == RunningStage.TRAINING and isinstance(self.strategy, LaunchedStrategy):
            self.strategy.weigh_batches(dealt.weight_of)
        return compat.with_sampler(dataloader, dealt, stage)


def _resumable(dataloader: DataLoader) -> DataLoader:
    """Return a loader of a single worker with a sampler that can go on in mid-epoch, if it can be built anew."""
    if type(dataloader) is not DataLoader:  # nobody has promised how to build it
        return dataloader
    if type(dataloader.batch_sampler) is BatchSampler:
        return compat.with_index_sampler(dataloader, WholeSampler(dataloader.sampler, dataloader.batch_size))
    if dataloader.batch_sampler is None:
        return compat.with_sampler(dataloader, WholeSampler(dataloader.sampler, 1), RunningStage.TRAINING)
    return compat.with_sampler(dataloader, WholeSampler(dataloader.batch_sampler, None), RunningStage.TRAINING)


def _loggers(given: Any, folder: Any) -> Any:
    """Return what lightning takes as loggers, those that are given by name made."""
    if (
        isinstance(given, (list, tuple))
        and given
        and all(isinstance(one, str) for one in given)
        or isinstance(given, str)
    ):
        return make_loggers(given, os.fspath(folder or Path.cwd()))
    return given


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[name]
    except KeyError:
        raise MisconfiguredTrainerError(
            f"preemption_signals has {name!r}, which is no signal; write names as 'SIGTERM' or 'SIGUSR1'."
        ) from None


def _writes_whole_files(strategy: Strategy) -> bool:
    """Tell whether a strategy's checkpoints are files that rank 0 writes; others shard theirs in their own way."""
    return isinstance(strategy, LaunchedStrategy | SingleDeviceStrategy)


def _given_environment(plugins: list[Any], strategy: object) -> ClusterEnvironment | None:
    """Return the environment that the user has given, as a plugin or with the strategy."""
    given = next((plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)), None)
    return given or getattr(strategy, "cluster_environment", None)


def _check_group_size(environment: ClusterEnvironment, devices: object, num_nodes: int) -> None:
    if not environment.creates_processes_externally or not isinstance(devices, int) or devices < 1:
        return
    if devices * num_nodes != environment.world_size():
        raise MisconfiguredTrainerError(
            f"{launcher_name(environment)} started {environment.world_size()} workers, but devices={devices} and "
            f"num_nodes={num_nodes} ask for {devices * num_nodes}. Start as many as are asked for, or leave devices "
            "and num_nodes out: the launcher decides."
        )


def _check_gpus(accelerator: object, devices: object) -> None:
    if accelerator not in ("gpu", "cuda") or MPSAccelerator.is_available():
        return
    found = CUDAAccelerator.auto_device_count()
    wanted = devices if isinstance(devices, int) and devices > 0 else 1
    if wanted > found:
        raise MisconfiguredTrainerError(
            f"accelerator={accelerator!r} with devices={devices!r} needs {wanted} GPUs, and torch {torch.__version__} "
            f"finds {found} on this machine. Ask for fewer, take accelerator='cpu', or check CUDA_VISIBLE_DEVICES and "
            "that torch is built for CUDA."
        )


def _check_divisible(dataloader: DataLoader, workers: int) -> None:
    size = dataloader.batch_size or getattr(dataloader.batch_sampler, "batch_size", None)
    if size is None and dataloader.batch_sampler is not None:
        return  # batches of a sampler of the user's own: each is split as evenly as it can be
    if size is None or size % workers:
        reason = "the loader has batch_size=None" if size is None else f"batch_size={size} is not a multiple of it"
        raise MisconfiguredTrainerError(
            f"split_batches=True divides every batch among {workers} workers, and {reason}. Workers with unequal "
            "batches would weigh samples unequally."
        )
