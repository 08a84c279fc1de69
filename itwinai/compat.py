"""The only file that touches private names of other libraries; each one has a test in ``tests/test_compat.py``.

When a new lightning release moves something, it is mended here and nowhere else.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import cloudpickle.cloudpickle
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.data import has_iterable_dataset
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loops import _Loop
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from lightning.pytorch.utilities.data import _get_dataloader_init_args_and_kwargs, _reinstantiate_wrapped_cls
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_only as utils_rank_zero_only
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

Launcher = _Launcher


# ------------------------------------------------------------------------------------------------ launching


class ConfiguresLauncher:
    """Mixin for strategies that bring their own launcher.

    Lightning asks for the launcher once, at the end of ``Trainer.__init__``, by a private method.
    """

    def make_launcher(self) -> Launcher | None:
        """Return what starts the workers, or None when this process is a worker already."""
        raise NotImplementedError

    def _configure_launcher(self) -> None:
        self._launcher = self.make_launcher()

    def drop_launcher(self) -> None:
        """Forget the launcher: in a worker nothing is launched again."""
        self._launcher = None


def call_in_worker(trainer: Trainer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run one of the trainer's entry points in this process, with Lightning's handling of exceptions around it."""
    return call._call_and_handle_interrupt(trainer, function, *args, **kwargs)


class SrunEnvironment(SLURMEnvironment):
    """lightning's SLURM environment, for tasks that are spread over nodes in any way.

    lightning computes ranks from the tasks per node and therefore insists on ``--ntasks-per-node``; here srun's own
    ranks are used.
    """

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accept any srun."""


def set_rank_zero(rank: int) -> None:
    """Tell lightning's rank-zero-only functions which rank this process has."""
    for decorator in (rank_zero_only, utils_rank_zero_only):
        setattr(decorator, "rank", rank)  # noqa: B010 - an attribute of a function


def limit_threads(num_processes: int) -> None:
    """Share this machine's cores among processes, unless OMP_NUM_THREADS is set."""
    _set_num_threads_if_needed(num_processes=num_processes)


def selects_ddp(accelerator: Any, devices: Any, num_nodes: int) -> bool:
    """Tell whether ``strategy="auto"`` stands for DDP, given the other flags."""
    connector = _AcceleratorConnector(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="auto")
    return isinstance(connector.strategy, LightningDDPStrategy)


# ------------------------------------------------------------------------------------------------ DeepSpeed


def leave_out_shared_memory_operator() -> None:
    """Let DeepSpeed do without the operator that it would compile for the CPU when it is first used.

    torch.distributed does the same work. Compiling takes a minute and a compiler, and a worker that is killed meanwhile
    leaves a lock behind at which all later runs of this user would wait for ever.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class EngineMaker(LightningDeepSpeedStrategy):
    """lightning's DeepSpeed strategy, which leaves making engines to a public method."""

    config: dict[str, Any]  # lightning refuses None before it gets here

    def make_engine(self, config: dict[str, Any], model: nn.Module, **options: Any) -> tuple[Any, ...]:
        """Return an engine around the model, and its optimizer."""
        raise NotImplementedError

    def restore_sharded(self, checkpoint: Mapping[str, Any], strict: bool) -> None:
        """Load whole weights into parameters that are sharded over the workers."""
        self._restore_zero_state(checkpoint, strict=strict)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self.make_engine(
            self.config, model, optimizer=optimizer, lr_scheduler=lr_scheduler, model_parameters=parameters
        )

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        kept = ["fp16", "bf16"]
        if self.zero_stage_3:
            kept += ["zero_allow_untested_optimizer", "zero_optimization"]
        config = {key: self.config[key] for key in kept if key in self.config}
        config["train_micro_batch_size_per_gpu"] = 1  # DeepSpeed asks for it, for its throughput timers
        remove_module_hooks(model)
        self.model, _ = self.make_engine(config, model, optimizer=None, lr_scheduler=None, model_parameters=[])

    def _init_optimizers(self) -> Any:
        assert self.lightning_module is not None
        optimizers, schedulers = _init_optimizers_and_lr_schedulers(self.lightning_module)
        if len(optimizers) != 1 or len(schedulers) > 1:
            raise ConfigurationError(
                f"{type(self.lightning_module).__name__}.configure_optimizers returns {len(optimizers)} optimizers and "
                f"{len(schedulers)} schedulers. A DeepSpeed engine shards one optimizer, with one scheduler at most: "
                "put all parameters into one, as parameter groups, or train with the strategy 'ddp' or 'horovod'."
            )
        return optimizers[0], schedulers[0] if schedulers else None

    def _format_batch_size_and_grad_accum_config(self) -> None:
        super()._format_batch_size_and_grad_accum_config()
        # The loop divides the loss by the number of accumulated batches; the engine would do it again.
        self.config["gradient_accumulation_steps"] = 1


def silence_known_warnings() -> None:
    """Silence warnings that concern neither the user's code nor ours; for processes that are itwinai's own."""
    # lightning looks for srun also where nobody wants to use it.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, in every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")
    # lightning 2.6 asks torch 2.13's pytree in a way that torch deprecates.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


# ------------------------------------------------------------------------------------------- random numbers


def collect_rng_states(include_cuda: bool = True) -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's global random number generators."""
    return _collect_rng_states(include_cuda=include_cuda)


def set_rng_states(states: dict[str, Any]) -> None:
    """Set the global random number generators to states from `collect_rng_states`."""
    _set_rng_states(dict(states))


# ----------------------------------------------------------------------------- what a run leaves on its trainer


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks, lightning's own included."""
    return vars(trainer)["callbacks"]  # an attribute that lightning does not declare


def attach(trainer: Trainer, module: LightningModule, datamodule: Any) -> None:
    """Leave a trainer attached to its module and datamodule, as after a local run."""
    trainer.strategy._lightning_module = module
    trainer.strategy.model = module
    module.trainer = trainer
    if datamodule is not None:
        vars(trainer)["datamodule"] = datamodule
        datamodule.trainer = trainer


def module_internals() -> frozenset[str]:
    """Return the attribute names that Lightning and torch keep on a LightningModule for themselves."""
    from lightning.pytorch import LightningModule

    return frozenset(vars(LightningModule())) | {"_trainer", "_fabric", "_jit_internal"}


def read_metrics(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return the trainer's three metric dictionaries, on the CPU."""
    connector = trainer._logger_connector
    return {
        name: {
            key: value.detach().cpu() if isinstance(value, Tensor) else value
            for key, value in getattr(connector, f"_{name}").items()
        }
        for name in ("callback_metrics", "logged_metrics", "progress_bar_metrics")
    }


def write_metrics(trainer: Trainer, metrics: Mapping[str, dict[str, Any]]) -> None:
    """Set the trainer's metric dictionaries to what `read_metrics` returned."""
    connector = trainer._logger_connector
    for name, values in metrics.items():
        setattr(connector, f"_{name}", values)
    # Otherwise the getters would first ask a loop that never ran here for its results.
    connector.reset_results()


_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def read_loops(trainer: Trainer) -> dict[str, Any]:
    """Return the progress and the limits of all loops."""
    return {
        "states": {name: getattr(trainer, name).state_dict() for name in _LOOPS},
        "fit_loop": {
            "max_batches": trainer.fit_loop.max_batches,
            "max_epochs": trainer.fit_loop.max_epochs,
            "min_epochs": trainer.fit_loop.min_epochs,
        },
    }


def write_loops(trainer: Trainer, loops: Mapping[str, Any]) -> None:
    """Set the progress of all loops to what `read_loops` returned, as if they had just ended here."""
    for name, state in loops["states"].items():
        loop: _Loop = getattr(trainer, name)
        loop.load_state_dict(state)
        _forget_loading(loop)  # ended, not interrupted: a second fit() starts at the next epoch
    for name, value in loops["fit_loop"].items():
        setattr(trainer.fit_loop, name, value)


def _forget_loading(loop: _Loop) -> None:
    # Not by the setter of `restarting`: with max_steps the fit loop turns False into True.
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            _forget_loading(child)


def is_predicting(trainer: Trainer) -> bool:
    """Tell whether the trainer's current or last entry point is ``predict``."""
    return trainer.state.fn == TrainerFn.PREDICTING


def mark_interrupted(trainer: Trainer) -> None:
    """Leave a trainer in the state in which an exception leaves it."""
    trainer.state.status = TrainerStatus.INTERRUPTED
    trainer.state.stage = None


# ---------------------------------------------------------------------------------------------- dataloaders


def replace_dataloader_preparation(
    trainer: Trainer, prepare: Callable[[DataLoader, RunningStage, bool], DataLoader]
) -> None:
    """Let a function of ours prepare each DataLoader where Lightning would inject its DistributedSampler.

    Args:
        trainer: the trainer.
        prepare: gets the loader, the stage, and whether its dataset has indices; returns the loader to use.
    """
    connector = trainer._data_connector
    stock = type(connector)._prepare_dataloader
    vars(connector)["_prepare_dataloader"] = functools.partial(_prepare_dataloader, connector, stock, prepare)


def _prepare_dataloader(
    connector: Any,
    stock: Callable[..., object],
    prepare: Callable[[DataLoader, RunningStage, bool], DataLoader],
    dataloader: object,
    shuffle: bool,
    mode: RunningStage,
) -> object:
    flags = connector.trainer._accelerator_connector
    if (
        not isinstance(dataloader, DataLoader)
        or not flags.use_distributed_sampler
        or not flags.is_distributed
        or isinstance(dataloader.sampler, DistributedSampler)  # the user deals the samples out
    ):
        return stock(connector, dataloader, shuffle=shuffle, mode=mode)
    return prepare(dataloader, mode, not has_iterable_dataset(dataloader))


def with_batch_size(dataloader: DataLoader, batch_size: int) -> DataLoader:
    """Build a loader of an iterable dataset like another, with another batch size."""
    args, kwargs = _get_dataloader_init_args_and_kwargs(dataloader, SequentialSampler(()), RunningStage.TRAINING)
    return _reinstantiate_wrapped_cls(dataloader, **{**_by_name(dataloader, args), **kwargs, "batch_size": batch_size})


def _by_name(dataloader: DataLoader, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return by name the arguments that were given by position where the loader was made, as lightning noted them."""
    return dict(zip(getattr(dataloader, "__pl_saved_arg_names", ()), args, strict=False))


def with_sampler(dataloader: DataLoader, sampler: Any, stage: RunningStage) -> DataLoader:
    """Build a loader like another, of the same class, that draws from another sampler.

    Args:
        dataloader: the user's loader.
        sampler: a batch sampler; for a loader with ``batch_size=None`` a sampler.
        stage: the stage that the loader is for.
    """
    plain = copy.copy(dataloader)
    batched = dataloader.batch_sampler is not None
    if batched:
        # lightning would build the user's batch sampler anew around a sampler, which not every class allows.
        vars(plain)["batch_sampler"] = BatchSampler(SequentialSampler(()), 1, False)
    args, kwargs = _get_dataloader_init_args_and_kwargs(plain, SequentialSampler(()), RunningStage.TRAINING)
    if batched and stage == RunningStage.PREDICTING:
        sampler = _IndexBatchSamplerWrapper(sampler)  # prediction writers ask it for the indices
    place = {"batch_sampler": sampler, "sampler": None} if batched else {"batch_sampler": None, "sampler": sampler}
    kwargs.update(place, shuffle=False, drop_last=False, batch_size=1 if batched else None)
    return _reinstantiate_wrapped_cls(dataloader, **{**_by_name(dataloader, args), **kwargs})


# ---------------------------------------------------------------------------------------------- cloudpickle


def dynamic_class_id(cls: type) -> str | None:
    """Return the id by which cloudpickle knows a class that it sent by value, or None for an importable class."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)


def dynamic_class(class_id: str) -> type:
    """Return the class of this process that cloudpickle sent by value under an id."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[class_id]
