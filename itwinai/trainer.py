"""`ItwinaiTrainer`: Lightning's Trainer, with the framework that trains chosen by one flag."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from itwinai.callbacks.defaults import check_finders, follow_module, with_defaults
from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO, PortableConnector, folders_of
from itwinai.checkpoints.discovery import AUTO, newest_unverified
from itwinai.checkpoints.naming import text_of_earlier
from itwinai.compat import (
    lightning_checkpoints,
    lightning_dataloaders,
    lightning_launching,
    lightning_logging,
    lightning_loops,
    lightning_signals,
    lightning_trainer,
)
from itwinai.compat import noise as compat_noise
from itwinai.compat.lightning_trainer import MisconfiguredTrainerError
from itwinai.data.distributed_loaders import DistributedLoaders
from itwinai.data.loader_checks import check_loaders
from itwinai.error_advice import explain
from itwinai.errors import ConfigurationError, PayloadError, UnknownArgumentError, WrongTypeError, did_you_mean
from itwinai.interfaces import Coordinated
from itwinai.launchers.base import raising_worker_failures
from itwinai.launchers.cpu_affinity import available_cores, oversubscription_text
from itwinai.launchers.environment import WorkerKind, find_outer_environment, launcher_name
from itwinai.launchers.failure_order import take_turn
from itwinai.launchers.slurm_job import earlier_tries, inside_slurm_step, requeue_job, run_name
from itwinai.loggers.continued_runs import continue_runs
from itwinai.loggers.hparams_redaction import hide_secrets
from itwinai.loggers.registry import make_loggers
from itwinai.loops.coordinated_stop import end_after_rank_zero
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.fit import LeanFitLoop
from itwinai.loops.prediction import LeanPredictionLoop
from itwinai.loops.results import LeanLoggerConnector
from itwinai.loops.training import LeanTrainingEpochLoop
from itwinai.plugins import check_callback_factories
from itwinai.run_info.run import resume_command
from itwinai.strategies.base import LaunchedStrategy
from itwinai.strategies.registry import make_strategy, uses_ray
from itwinai.tracebacks import hides_framework_frames
from itwinai.trials.current_session import find_session
from itwinai.unify import refuse_foreign
from itwinai.warn import warn_user

# A decorator that returns its argument, for type checkers: they then know the arguments of what is decorated.
Function = TypeVar("Function", bound=Callable[..., Any])


def _entry_point_of_lightning(entry_point: Function) -> Function:
    """Wrap an entry point of Lightning's Trainer so that what failed in the workers is raised on the caller."""

    @hides_framework_frames
    @functools.wraps(entry_point)
    def wrapped(self: ItwinaiTrainer, *args: Any, **kwargs: Any) -> Any:
        check_finders(self)
        _check_given(entry_point, self, args, kwargs)
        refuse_foreign(*args, *kwargs.values())
        self._fit_began = time.time()
        if entry_point is Trainer.fit:
            self._portable().parts_of_workers = {}
        try:
            continue_runs(self)
            with (
                compat_noise.known_noise_silenced(self.global_rank),
                _cpu_threads(self.cpu_threads),
                raising_worker_failures(self),
            ):
                if not isinstance(self.strategy, LaunchedStrategy) and self.world_size == 1:  # others warn themselves
                    _warn_of_crowding()
                returned = entry_point(self, *args, **kwargs)
            if entry_point is Trainer.fit:
                self._say_why_it_stopped()
            self._say_where_checkpoint_is(entry_point)
        except SIGTERMException as stopped:
            # Lightning leaves the code out, and a scheduler would take the run for a finished one.
            stopped.code = stopped.code or 128 + getattr(stopped, "signum", signal.SIGTERM)
            self._say_how_to_resume(entry_point)
            # Not before: SLURM ends the job at once, and the loggers have had their time now.
            if lightning_signals.asks_to_requeue(self) and self.is_global_zero:
                requeue_job()
            store = self.strategy.coordination_store() if isinstance(self.strategy, Coordinated) else None
            if store is not None and inside_slurm_step():
                end_after_rank_zero(store, self.global_rank)
            raise
        except SystemExit:
            if self.interrupted:  # by Ctrl-C
                if self.global_step:  # a worker that was busy may not have said how far it came
                    # Counted as the lines of epochs count them.
                    epoch, steps = self.current_epoch + 1, self.global_step
                    rank_zero_info(f"itwinai: stopped in epoch {epoch}, after {steps} steps")
                self._say_how_to_resume(entry_point)
            raise
        except Exception as error:
            told = _explained(self, error)
            if (store := _store_of_joined_output(self)) is not None:
                take_turn(told, store, self.global_rank)
            if told is error:
                raise
            raise told from None
        finally:
            self._portable().since = 0.0
        return returned

    return cast(Function, wrapped)


def _store_of_joined_output(trainer: ItwinaiTrainer) -> dist.Store | None:
    """Return the store of workers that print to the same log; None where each failure goes to the caller."""
    strategy = trainer.strategy
    if trainer.world_size == 1 or not isinstance(strategy, LaunchedStrategy) or strategy.cluster_environment is None:
        return None
    joined = launcher_name(strategy.cluster_environment) in ("srun", "torchrun")
    return strategy.coordination_store() if joined else None


def _explained(trainer: ItwinaiTrainer, error: Exception) -> Exception:
    """Return an exception with what to change, or one that says so in its place."""
    try:
        explain(trainer, error)
    except ConfigurationError as told:
        return told
    return error


BUSY = 1.5
"""Programs that want to run for each core, from which on threads of one process get in each other's way."""


def _warn_of_crowding() -> None:
    threads, cores = torch.get_num_threads(), available_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if text := oversubscription_text(1, threads, cores):
        warn_user(text)
    elif threads > 1 and load > BUSY * cores:
        warn_user(
            f"This machine is busy (load {load:.1f} on {cores:g} cores), and this process computes with {threads} "
            "threads, which wait for each other: steps can take many times longer. Set cpu_threads=1."
        )


@contextmanager
def _cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with this many threads inside the context; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_environment_defaults(init: Function) -> Function:
    """Wrap the trainer's constructor: what is not given comes from variables such as PL_TRAINER_DEVICES, if set."""

    @hides_framework_frames
    @functools.wraps(init)
    def wrapped(self: ItwinaiTrainer, **kwargs: Any) -> None:
        with compat_noise.known_noise_silenced():
            _check_names(kwargs, init)
            init(self, **{**lightning_trainer.trainer_arguments_from_environment(), **kwargs})

    return cast(Function, wrapped)


def _check_names(arguments: Iterable[str], init: Callable[..., Any]) -> None:
    """Raise an error for the first argument that the constructor does not have."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]
    for name in arguments:
        if name not in known:
            raise UnknownArgumentError(
                f"ItwinaiTrainer has no argument '{name}'.{did_you_mean(name, known)} It accepts every argument of "
                "Lightning's Trainer, and those that help(ItwinaiTrainer) lists.",
                argument=name,
            )


class ItwinaiTrainer(Trainer):
    """Train any LightningModule, unchanged, on DDP, DeepSpeed, Horovod or Ray.

    Accepts every argument of `lightning.pytorch.Trainer`. `strategy` and `logger` accept more values; the arguments
    from `split_batches` on are additional.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"``, ``"tpu"``, or an accelerator.
        strategy: a name (``ddp``, ``deepspeed``, ``deepspeed_stage_0`` to ``_3``, ``horovod``, ``ray``, ``ray_ddp``,
            ``ray_deepspeed``, ``ray_horovod``, or any that Lightning has), or an instance of a class from
            `itwinai.strategies` for options that a name cannot carry. ``auto`` is DDP for several workers.
        devices: number of workers on each node, a list of device indices, ``-1`` for all devices, or ``"auto"``.
        num_nodes: number of nodes.
        precision: ``"32-true"``, ``"16-mixed"``, ``"bf16-mixed"``, ``"16-true"``, ``"bf16-true"``, ``"64-true"``.
        logger: as in Lightning; or a name (``csv``, ``jsonl``, ``tensorboard``, ``mlflow``, ``wandb``,
            ``provenance``), or several separated by commas. By name a logger needs no server, and writes below
            ``default_root_dir``. Secrets among the hyperparameters are hidden from every logger.
        callbacks: a callback, or a list of them.
        fast_dev_run: run one batch of each stage (``True``), or this many, to find bugs; nothing is logged or saved.
        max_epochs: stop after this many epochs; 1000 if ``max_steps`` is not given either, ``-1`` for no limit.
        min_epochs: train for at least this many epochs.
        max_steps: stop after this many optimizer steps; ``-1`` for no limit.
        min_steps: train for at least this many optimizer steps.
        max_time: stop after this time: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments.
        limit_train_batches: number (int) or fraction (float) of batches to train on, per epoch and worker.
        limit_val_batches: the same for validation batches.
        limit_test_batches: the same for test batches.
        limit_predict_batches: the same for prediction batches.
        overfit_batches: train and validate on the same few batches: their number (int) or fraction (float).
        val_check_interval: validate after this fraction of an epoch (float), number of batches (int), or time.
        check_val_every_n_epoch: validate every n epochs; ``None`` counts ``val_check_interval`` across epochs.
        num_sanity_val_steps: validation batches to try before training; ``-1`` for all. 2 by default.
        log_every_n_steps: steps between two log entries. 50 by default.
        enable_checkpointing: add a `ModelCheckpoint` if there is none among the callbacks. On by default.
        enable_progress_bar: show the progress. On by default.
        enable_model_summary: print a table of the module's layers at the start. On by default.
        accumulate_grad_batches: batches whose gradients are added up before the optimizer steps.
        gradient_clip_val: clip gradients at this value; ``None`` does not clip.
        gradient_clip_algorithm: ``"norm"`` (default) or ``"value"``.
        deterministic: use deterministic algorithms only; ``"warn"`` warns where there is none.
        benchmark: let cuDNN search for the fastest algorithms.
        inference_mode: evaluate under `torch.inference_mode`; ``False`` uses `torch.no_grad`.
        use_distributed_sampler: divide the batches of DataLoaders among the workers, so that global batch k holds the
            samples that batch k of a single process would hold. If off, every worker iterates its loaders as they are.
        profiler: Lightning's profiler of hooks: ``"simple"``, ``"advanced"``, ``"pytorch"``, or an instance.
        detect_anomaly: let autograd look for operations that produce NaN; slow.
        barebones: turn off logging, checkpoints, progress and checks, to measure the trainer's overhead.
        plugins: a plugin for precision, checkpoints, cluster or layers, or a list of them.
        sync_batchnorm: compute the statistics of batch norm layers over all workers.
        reload_dataloaders_every_n_epochs: create new loaders every n epochs; 0 never does.
        default_root_dir: folder for logs and checkpoints. The working folder by default.
        enable_autolog_hparams: log the module's hyperparameters at the start.
        model_registry: name under which the model is uploaded to Lightning's model hub.
        split_batches: use a DataLoader's batch size as that of the global batch, and divide it among the workers.
            By default it is the batch size of each worker, as in Lightning.
        weigh_uneven_batches: where the last global batch cannot be divided evenly, weigh each worker's loss by its
            number of samples. Right for losses that are means over a worker's own samples. Turn it off for losses
            that are global already, because the module gathers or reduces over the workers before it computes them.
        max_restarts: how often to restart the workers of a fit when one of them dies: killed, out of memory,
            its node lost. They resume from the newest valid checkpoint of this run. An exception of the user's code
            ends the run.
        resume: what ``fit`` resumes from if it is not given ``ckpt_path``: a path, or ``"auto"`` for the newest valid
            checkpoint in the folders of this trainer's checkpoint callbacks, if there is one. In a job that SLURM has
            requeued, ``"auto"`` is the default.
        preemption_signals: signals at which all workers stop before the same batch and save a checkpoint. The exit
            code is 128 plus the signal's number. A second one, more than a second later, ends the run at once.
        watch: log standard values, sample the system, profile the steps, and report all of it at the end: adds the
            callbacks `LoggingCallback`, `SystemMonitor`, `ProfilingCallback` and `RunSummary` unless they are among
            ``callbacks``.
        launcher: how to start the workers of this machine, if no outer launcher has started them. ``"fork"``:
            copies of this process, which inherit its objects and send back only the result. ``"script"``: new
            processes that rerun the script up to this call. ``"payload"``: new processes that receive the trainer
            and its arguments as a pickle. ``"auto"`` forks, unless this process has threads or uses a device, which a
            fork does not survive; then it sends a payload if everything can be pickled; otherwise it reruns the script.
        cpu_threads: number of torch threads in each worker. By default the workers share the machine's cores. A
            different number of threads may round sums differently.
        compile_step: run forward, backward, clipping and the optimizer's update as one compiled graph, which pays for
            small models: compiling takes seconds. DDP and Horovod take two, and average gradients between them.
            ``True`` refuses what cannot be compiled, ``"auto"`` trains it as without.

    Raises:
        ConfigurationError: the strategy is unknown, or the flags contradict each other or the outer launcher.
        MissingPackageError: the package behind the strategy is not installed.
    """

    # Lightning's arguments one by one, in its order, so that editors, notebooks and type checkers see them;
    # tests/test_typing.py compares them with the installed Lightning's.
    @_with_environment_defaults
    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: lightning_trainer.PrecisionInput | None = None,
        logger: Logger | Iterable[Logger] | bool | str | Sequence[str] | None = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: lightning_trainer.PluginInput | list[lightning_trainer.PluginInput] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | Path | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        split_batches: bool = False,
        weigh_uneven_batches: bool = True,
        max_restarts: int = 0,
        resume: str | os.PathLike[str] | None = None,
        preemption_signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        watch: bool = False,
        launcher: WorkerKind | None = None,
        cpu_threads: int | None = None,
        compile_step: bool | Literal["auto"] = False,
    ) -> None:
        if split_batches and not use_distributed_sampler:
            raise MisconfiguredTrainerError(
                "split_batches=True divides the batches of DataLoaders among the workers, and "
                "use_distributed_sampler=False says that DataLoaders stay as they are. Choose one."
            )
        if max_restarts < 0:
            raise MisconfiguredTrainerError(
                f"max_restarts must be at least 0; got {max_restarts}.", argument="max_restarts"
            )
        self.split_batches = split_batches
        self.weigh_uneven_batches = weigh_uneven_batches
        if cpu_threads is not None and cpu_threads < 1:
            raise MisconfiguredTrainerError(
                f"cpu_threads must be at least 1; got {cpu_threads}.", argument="cpu_threads"
            )
        self.max_restarts = max_restarts
        self.cpu_threads = cpu_threads
        if compile_step not in (True, False, "auto"):
            raise MisconfiguredTrainerError(
                f"compile_step must be True, False or 'auto'; got {compile_step!r}.", argument="compile_step"
            )
        self.compile_step = compile_step
        check_devices(accelerator, devices, strategy)
        self._fit_began = 0.0
        self.preemption_signals = [_signal(name) for name in preemption_signals]
        self.report_failure: Callable[[BaseException], None] | None = None
        plugin_list = list(plugins) if isinstance(plugins, Iterable) else [] if plugins is None else [plugins]
        environment = _given_environment(plugin_list, strategy)
        launched = None if environment else find_outer_environment()
        if launched is not None:
            _check_group_size(launched, devices, num_nodes)
        # Named in any case, so that Lightning does not take an interactive SLURM allocation for a launcher.
        environment = environment or launched or LightningEnvironment()
        if isinstance(strategy, str):
            strategy = make_strategy(strategy) or strategy
        if isinstance(strategy, LaunchedStrategy):
            accelerator = strategy.accelerator_for(accelerator)
        _check_gpus(accelerator, devices)
        if strategy == "auto" and (
            launched.world_size() > 1 if launched else lightning_launching.selects_ddp(accelerator, devices, num_nodes)
        ):
            strategy = make_strategy("ddp") or "ddp"
        if launcher is not None and isinstance(strategy, LaunchedStrategy):
            strategy.use_launcher(launcher)
        if environment not in plugin_list and getattr(strategy, "cluster_environment", None) is None:
            plugin_list.append(environment)
        session = find_session()
        if default_root_dir is None and session is not None:
            default_root_dir = session.folder  # trials that run at the same time would write to one place
        loggers = _loggers(logger, default_root_dir)
        for value in (callbacks, logger, strategy, plugins, profiler):
            refuse_foreign(*(value if isinstance(value, (list, tuple)) else [value]))
        check_callback_factories()
        check_callbacks(callbacks)
        all_callbacks = callbacks
        if not barebones:
            all_callbacks = with_defaults(
                callbacks,
                watch,
                loggers,
                progress=enable_progress_bar is not False,
                summary=enable_model_summary is not False,
                checkpoints=enable_checkpointing is not False,
            )
        super().__init__(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            logger=loggers,
            callbacks=all_callbacks,
            fast_dev_run=fast_dev_run,
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_steps=max_steps,
            min_steps=min_steps,
            max_time=max_time,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            enable_checkpointing=enable_checkpointing,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            deterministic=deterministic,
            benchmark=benchmark,
            inference_mode=inference_mode,
            use_distributed_sampler=use_distributed_sampler,
            profiler=profiler,
            detect_anomaly=detect_anomaly,
            barebones=barebones,
            plugins=plugin_list,
            sync_batchnorm=sync_batchnorm,
            reload_dataloaders_every_n_epochs=reload_dataloaders_every_n_epochs,
            default_root_dir=default_root_dir,
            enable_autolog_hparams=enable_autolog_hparams,
            model_registry=model_registry,
        )
        if session is not None and session.worker_pool is not None and isinstance(self.strategy, LaunchedStrategy):
            self.strategy.reuse_workers(session.worker_pool)
        follow_module(self, callbacks)
        for one in self.loggers:
            hide_secrets(one)
        loaders = DistributedLoaders(
            self, self.split_batches, self.weigh_uneven_batches, outlive_signals=run_name() is not None
        )
        lightning_dataloaders.replace_dataloader_preparation(
            self, loaders.prepare, loaders.prepare_other, loaders.finish
        )
        lightning_checkpoints.replace_checkpoint_connector(self, PortableConnector)
        if resume is None and session is None and earlier_tries():
            resume = AUTO
        self._portable().resume = None if resume is None else os.fspath(resume)
        if _writes_whole_files(self.strategy) and type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = PortableCheckpointIO()
        if lightning.__version__ in lightning_loops.VERIFIED_LOOPS:
            lightning_signals.replace_signal_connector(self)
            signals = lightning_signals.signal_connector(self)
            signals.others = tuple(self.preemption_signals)
            signals.is_patient = run_name() is not None
            signals.ends_with_run = inside_slurm_step()
            lightning_logging.replace_logger_connector(self, LeanLoggerConnector)
            lightning_loops.replace_training_epoch_loop(self, LeanTrainingEpochLoop)
            lightning_loops.replace_fit_loop(self, LeanFitLoop)
            lightning_loops.replace_evaluation_loops(self, LeanEvaluationLoop)
            lightning_loops.replace_prediction_loop(self, LeanPredictionLoop)
        else:
            warn_user(
                f"itwinai's fast loops are verified with Lightning {', '.join(lightning_loops.VERIFIED_LOOPS)}, not "
                f"with {lightning.__version__}. This run uses Lightning's own loops, which are slower"
                f"{', and compile no steps' if compile_step else ''}."
            )

        lightning_dataloaders.make_loaders_within(self, loaders.shared_random_numbers, check_loaders)

    fit = _entry_point_of_lightning(Trainer.fit)
    validate = _entry_point_of_lightning(Trainer.validate)
    test = _entry_point_of_lightning(Trainer.test)
    predict = _entry_point_of_lightning(Trainer.predict)

    @property
    def is_repeated_batch(self) -> bool:
        """Whether this batch is padding: another rank counts its samples; this rank runs it to stay in step.

        Metrics and logged values leave such a batch out. Check this wherever a module or callback collects outputs.
        """
        return bool(getattr(lightning_logging.active_results(self), "weight", 1.0) == 0.0)

    def _say_where_checkpoint_is(self, entry_point: Callable[..., Any]) -> None:
        """Name the best checkpoint of a fit that has ended, or the last one."""
        callback: Any = self.checkpoint_callback
        path = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
        if entry_point is Trainer.fit and path and self.is_global_zero:
            what = "best" if callback.monitor else "last"
            rank_zero_info(f"itwinai: {what} checkpoint {path}{text_of_earlier(path)}")
            newest = getattr(callback, "last_model_path", "")
            if newest != path and (earlier := text_of_earlier(newest)):
                rank_zero_info(f"itwinai: newest checkpoint {newest}{earlier}")

    def _say_why_it_stopped(self) -> None:
        """Tell what early stopping has found, which Lightning does on request only."""
        for one in self.callbacks:  # type: ignore[attr-defined]
            here = isinstance(one, EarlyStopping) and self.current_epoch - 1 <= one.stopped_epoch
            if here and not one.verbose and one.stopping_reason_message:
                who, text = (
                    f"{type(one).__name__}(mode='{one.mode}')",
                    one.stopping_reason_message.removesuffix(" Signaling Trainer to stop."),
                )
                rank_zero_info(f"itwinai: {who} stopped the run after epoch {one.stopped_epoch + 1}: {text}")

    def _say_how_to_resume(self, entry_point: Callable[..., Any]) -> None:
        """Name the newest checkpoint of a fit that has been stopped."""
        if entry_point is not Trainer.fit or not self.is_global_zero:
            return
        if path := newest_unverified(folders_of(self), self._fit_began):
            command = resume_command(path)
            rank_zero_info(f"itwinai: resume with ckpt_path={path!r}{command and f', or: {command}'}")
        else:
            rank_zero_info(
                "itwinai: no checkpoint was saved; add ModelCheckpoint(every='10min') to save during training, "
                "or stop the run with SIGTERM, which saves one first"
            )

    def keep_checkpoint(self, parts: dict[str, Any]) -> None:
        """Keep what only the workers of the last fit had, for `save_checkpoint` on the caller."""
        self._portable().parts_of_workers = parts

    def prepare_restart(self) -> None:
        """Let the next workers resume from the newest checkpoint that was written since the first were started."""
        self._portable().since = self._fit_began

    def _portable(self) -> PortableConnector:
        connector = lightning_checkpoints.checkpoint_connector(self)
        assert isinstance(connector, PortableConnector)
        return connector

    def abort(self, error: BaseException) -> None:
        """End this worker because of an error that its main thread, which waits for another worker, cannot raise.

        Args:
            error: what the user sees.
        """
        if self.report_failure is not None:
            self.report_failure(error)
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def _loggers(given: Any, folder: Any) -> Any:
    """Return what Lightning accepts as loggers, those that are given by name made."""
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
            f"preemption_signals has {name!r}, which is not a signal; use names such as 'SIGTERM' or 'SIGUSR1'.",
            argument="preemption_signals",
        ) from None


def check_devices(accelerator: object, devices: object, strategy: object) -> None:
    """Raise an error for a number of devices that Lightning would refuse in other words, or take for another one.

    Args:
        accelerator: that of the trainer.
        devices: what is to be a number of workers, or which devices they use.
        strategy: that of the trainer; Ray's workers may have devices that this machine has not.

    Raises:
        ConfigurationError: the value is neither.
    """
    parts: list[Any] = devices.split(",") if isinstance(devices, str) else [devices]
    parts = devices if isinstance(devices, list) else parts
    try:
        numbers = [int(part) for part in parts if str(part).strip()]
    except (TypeError, ValueError):
        numbers = []
    indices = isinstance(devices, list) or len(parts) > 1
    gpus = accelerator != "cpu" and (
        uses_ray(strategy) or CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    )
    if devices == "auto" or (numbers and min(numbers) >= 1 and not indices):
        return
    if accelerator not in ("auto", "cpu") or (
        gpus and (numbers == [-1] or (numbers and min(numbers) >= 0 and indices))
    ):
        return
    raise MisconfiguredTrainerError(
        f"devices={devices} is not a number of workers. Give 1 or more, or 'auto'; on GPUs also -1 for all of them, "
        "or a list of their indices.",
        argument="devices",
    )


def _writes_whole_files(strategy: Strategy) -> bool:
    """Return whether a strategy's checkpoints are files that rank 0 writes; others shard theirs in their own way."""
    return isinstance(strategy, LaunchedStrategy | SingleDeviceStrategy)


def _check_given(
    entry_point: Callable[..., Any], trainer: ItwinaiTrainer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise an error for arguments of an entry point that it does not have, or that are of another kind.

    Raises:
        UnknownArgumentError: it has no such argument.
        PayloadError: a class is given in the place of a model or of data.
        WrongTypeError: the model is in another place, or data is given that is no loader.
    """
    name, signature = entry_point.__name__, inspect.signature(entry_point)
    for one in kwargs:
        if one not in signature.parameters:
            known = [other for other in signature.parameters if other != "self"]
            raise UnknownArgumentError(
                f"ItwinaiTrainer.{name} has no argument '{one}'.{did_you_mean(one, known)} It takes "
                f"{', '.join(known)}.",
                argument=one,
            )
    for one in (*args, *kwargs.values()):
        if isinstance(one, type):
            raise PayloadError(f"{one.__name__} is a class. Pass an instance of it: {one.__name__}(...).")
    try:
        given = signature.bind_partial(trainer, *args, **kwargs).arguments
    except TypeError:
        return  # too many: Python says so
    model = given.get("model")
    if isinstance(model, (LightningDataModule, DataLoader)):
        raise WrongTypeError(
            f"The first argument of {name} is the module, and {type(model).__name__} is data. Write "
            f"trainer.{name}(module, {'datamodule' if isinstance(model, LightningDataModule) else 'loader'})."
        )
    for argument, value in given.items():
        if argument.endswith("dataloaders"):
            check_loaders(value)


def check_callbacks(callbacks: Any) -> None:
    """Raise an error for a callback that is a class, or something else that is no callback.

    Raises:
        WrongTypeError: it is one of those.
    """
    several = isinstance(callbacks, (list, tuple))
    for number, one in enumerate(callbacks if several else [callbacks]):
        if isinstance(one, type):
            place = f"callbacks[{number}]" if several else "callbacks"
            raise WrongTypeError(
                f"{place} is the class {one.__name__}. Pass an instance of it: {one.__name__}(...).",
                argument="callbacks",
            )


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
    number = str(devices)
    wanted = int(number) if number.isdigit() and int(number) > 0 else 1
    if wanted > found:
        gpus = "a GPU" if wanted == 1 else f"{wanted} GPUs"
        raise MisconfiguredTrainerError(
            f"accelerator={accelerator!r} with devices={devices} needs {gpus}, and torch {torch.__version__} finds "
            f"{found or 'none'} on this machine. Ask for fewer, use accelerator='cpu', or check CUDA_VISIBLE_DEVICES "
            "and that torch is built for CUDA."
        )
