"""The only file that touches private names of other libraries; each one has a test in ``tests/test_compat*.py``.

When a new lightning release moves something, it is mended here and nowhere else.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import ctypes
import functools
import gc
import logging
import multiprocessing.reduction
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import cloudpickle.cloudpickle
import jsonargparse
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.fabric.utilities.data import has_iterable_dataset, sized_len
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops import _EvaluationLoop, _FitLoop, _Loop
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.progress import _OptimizerProgress
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.plugins import _PLUGIN_INPUT, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _METRICS,
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.argparse import _parse_env_variables
from lightning.pytorch.utilities.data import _get_dataloader_init_args_and_kwargs, _reinstantiate_wrapped_cls
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.rank_zero import rank_zero_only as utils_rank_zero_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
from lightning.pytorch.core.optimizer import LightningOptimizer

Launcher = _Launcher
# What the arguments `plugins` and `precision` of lightning's Trainer take.
PluginInput = _PLUGIN_INPUT
PrecisionInput = _PRECISION_INPUT


def trainer_arguments_from_environment() -> dict[str, Any]:
    """Return the arguments of lightning's Trainer that environment variables such as PL_TRAINER_DEVICES give."""
    from lightning.pytorch.trainer.trainer import Trainer

    return vars(_parse_env_variables(Trainer))


# ------------------------------------------------------------------------------------------ command lines

Class = TypeVar("Class", bound=type)


def unlisted(base: Class) -> Class:
    """Return a subclass of a class whose own subclasses the short names of command lines do not mean.

    jsonargparse takes a short name such as ``ModelCheckpoint`` for any class of that name below the one that is asked
    for, and refuses one that several have. It does not look below classes that are defined in a function.
    """

    class Unlisted(base):  # type: ignore[valid-type, misc]
        pass

    return Unlisted  # type: ignore[return-value]


if TYPE_CHECKING:  # which cannot follow a function that makes a class
    UnlistedParallelStrategy = ParallelStrategy
    UnlistedDDPStrategy = LightningDDPStrategy
    UnlistedDeepSpeedStrategy = LightningDeepSpeedStrategy
    UnlistedModelCheckpoint = LightningModelCheckpoint
else:
    UnlistedParallelStrategy = unlisted(ParallelStrategy)
    UnlistedDDPStrategy = unlisted(LightningDDPStrategy)
    UnlistedDeepSpeedStrategy = unlisted(LightningDeepSpeedStrategy)
    UnlistedModelCheckpoint = unlisted(LightningModelCheckpoint)


@dataclass(frozen=True)
class ParserArgument:
    """An argument of a parser of jsonargparse.

    Attributes:
        name: with dots, as ``trainer.max_epochs``.
        flags: by which it is given.
        type: the type hint of its values.
        required: whether it has to be given.
        default: what it is otherwise.
        takes_value: whether its flags are followed by a value.
    """

    name: str
    flags: tuple[str, ...]
    type: Any
    required: bool
    default: Any
    takes_value: bool


def parser_arguments(parser: ArgumentParser, subcommand: str | None = None) -> list[ParserArgument]:
    """Return the arguments of a parser of jsonargparse.

    Args:
        parser: the parser.
        subcommand: take those of the parser of this subcommand.
    """
    if subcommand is not None:
        found = [one.choices[subcommand] for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        return parser_arguments(found[0]) if found else []
    return [
        ParserArgument(
            one.dest,
            tuple(one.option_strings),
            getattr(one, "_typehint", one.type),
            one.required,
            one.default,
            one.nargs != 0,
        )
        for one in parser._actions
    ]


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


def selects_ddp(accelerator: Any, devices: Any, num_nodes: int) -> bool:
    """Tell whether ``strategy="auto"`` stands for DDP, given the other flags."""
    connector = _AcceleratorConnector(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="auto")
    return type(connector.strategy) is LightningDDPStrategy  # TPUs have a subclass of it


# ------------------------------------------------------------------------------------------------ torch's DDP


def sample_exchanges(model: DistributedDataParallel, every: int) -> None:
    """Let DDP measure, in one of so many steps, how long its exchange of gradients takes."""
    model._set_ddp_runtime_logging_sample_rate(every)


def exchange_time(model: DistributedDataParallel) -> tuple[float, float, float]:
    """Return how long DDP's exchange of gradients takes in a step, how much of it beside backward, and backward itself.

    All are in seconds, means over the steps in which they were measured; 0 before that. Backward is measured without
    the time that it waits at its end.
    """
    measured = model._get_ddp_logging_data()
    total, overlapped, computing = (
        measured.get(f"avg_backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap", "compute")
    )
    return total / 1e9, overlapped / 1e9, computing / 1e9


@contextmanager
def ddp_options(strategy: LightningDDPStrategy, options: dict[str, Any]) -> Iterator[None]:
    """Let lightning wrap modules with further options of DistributedDataParallel for a while."""
    before = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**before, **options}
    try:
        yield
    finally:
        strategy._ddp_kwargs = before


def end_reducer(model: DistributedDataParallel) -> None:
    """Take the hooks of DDP's reducer off the parameters, so that the module can be wrapped again."""
    del model.logger  # refers to the reducer, whose hooks go when it does
    del model.reducer


def backward_pass() -> int:
    """Return a number of the backward pass that runs in this thread, the innermost of several; -1 if none does."""
    return int(torch._C._current_graph_task_id())


def after_backward_pass(function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that runs in this thread, before ``backward`` returns."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def is_profiling() -> bool:
    """Tell whether a profiler of torch is recording in this process."""
    return bool(torch.autograd._profiler_enabled())


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors as one vector, as torch's ``get_total_norm``, in a third of its time.

    That one sorts them by device and type first, which for most modules are the same.
    """
    device, dtype = tensors[0].device, tensors[0].dtype
    if all(type(t) is Tensor and t.device == device and t.dtype == dtype and not t.is_sparse for t in tensors):
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return torch.nn.utils.get_total_norm([t.coalesce().values() if t.is_sparse else t for t in tensors])


# ------------------------------------------------------------------------------------------------ DeepSpeed


def leave_out_shared_memory_operator() -> None:
    """Let DeepSpeed do without the operator that it would compile for the CPU when it is first used.

    torch.distributed does the same work. Compiling takes a minute and a compiler, and a worker that is killed meanwhile
    leaves a lock behind at which all later runs of this user would wait for ever.
    """
    import deepspeed.ops

    # DeepSpeed asks only for this one. To look it up as it does would try the compiler with every operator.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


DEEPSPEED_MODULES = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
"""The modules of DeepSpeed that take seconds to import. An engine imports the second one, which compiles a function and
so loads torch's compiler; older releases have none."""


_ENGINE_ATTRIBUTES = frozenset(
    {
        "_external_params",
        "_original_parameters",
        "all_parameters",
        "applied_pre_backward_ref_cnt",
        "forward",
        "post_bwd_fn",
        "pre_bwd_fn",
    }
)


def is_attribute_of_engine(name: str) -> bool:
    """Tell whether an attribute that a module did not have before is one that a DeepSpeed engine has set."""
    return name.startswith("ds_") or name in _ENGINE_ATTRIBUTES


_ENGINE_PARAMETER_ATTRIBUTES = frozenset(
    {
        "_dp_group",
        "_hp_mapping",
        "_index_in_param_group",
        "_z3_optimizer",
        "_zero_optimizer",
        "aligned_size",
        "all_gather",
        "all_gather_coalesced",
        "convert_to_zero_parameters",
        "get_full_hp_grad",
        "get_full_hp_param",
        "grad_accum",
        "is_external_param",
        "item",
        "load_hp_checkpoint_state",
        "nvme_swapper",
        "padding_size",
        "param_idx_in_group",
        "partition",
        "partition_gradients",
        "partition_numel",
        "reduce_gradients_at_owner",
        "set_full_hp_grad",
        "set_full_hp_param",
    }
)


def is_parameter_attribute_of_engine(name: str) -> bool:
    """Tell whether an attribute that a parameter did not have before is one that a DeepSpeed engine has set."""
    return name.startswith("ds_") or name in _ENGINE_PARAMETER_ATTRIBUTES


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def remove_hooks_of_engine(owner: nn.Module | nn.Parameter) -> None:
    """Take the hooks of a DeepSpeed engine off a module or a parameter: they keep the engine, and cannot be pickled."""
    for name in _HOOKS if isinstance(owner, nn.Module) else _PARAMETER_HOOKS:
        hooks = getattr(owner, name) or {}
        for key, hook in list(hooks.items()):
            if (getattr(hook, "__module__", None) or "").startswith("deepspeed."):
                del hooks[key]


def remove_manager_of_engine(output: Any) -> None:
    """Take the manager of a DeepSpeed engine's hooks off the loss that a step returns, which the hooks keep alive.

    The loop clones the loss. Tensors of some classes are cloned with their attributes, and this one cannot be copied.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, Tensor):
        vars(loss).pop("_backward_hook_managers", None)


@contextmanager
def making_engine(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let an engine that is made meanwhile take parameters of any shape, and broadcast none of them.

    Its broadcast fails for parameters without dimensions, and for those whose memory is in another order.
    """
    scalars = [parameter for parameter in parameters if parameter.dim() == 0]
    for parameter in scalars:
        parameter.data = parameter.data.view(1)
    for parameter in parameters:
        vars(parameter)["ds_optim_param"] = True
    try:
        yield
    finally:
        for parameter in parameters:
            vars(parameter).pop("ds_optim_param", None)
        for parameter in scalars:
            if hasattr(parameter, "ds_shape"):
                parameter.ds_shape = torch.Size(())
            if parameter.numel() == 1:  # not where it is sharded
                parameter.data = parameter.data.view(())


def refuse_second_derivatives(module: nn.Module, refuse: Callable[[], None]) -> None:
    """Call a function when a gradient that is to be differentiated itself is computed in training, in ZeRO stage 3."""
    for submodule in module.modules():
        function = vars(submodule).get("pre_bwd_fn")
        if function is not None:
            function.backward = staticmethod(functools.partial(_first_derivative, function.backward, refuse))


def _first_derivative(backward: Callable[..., Any], refuse: Callable[[], None], ctx: Any, *gradients: Any) -> Any:
    if torch.is_grad_enabled() and ctx.module.training:
        refuse()
    return backward(ctx, *gradients)


def tolerate_outputs(module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap the hooks by which ZeRO stage 3 looks at what the layers of a module return."""
    for submodule in module.modules():
        for key, hook in list(submodule._forward_hooks.items()):
            if (getattr(hook, "__module__", None) or "").startswith("deepspeed."):
                submodule._forward_hooks[key] = wrap(hook)


class EngineMaker(UnlistedDeepSpeedStrategy):
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

    def init_deepspeed(self) -> None:
        # Not lightning's: that one refuses to clip by value, and warns of hooks that are ignored.
        assert self.lightning_module is not None
        assert isinstance(self.model, nn.Module)
        if self.lightning_module.trainer.training:
            self._initialize_deepspeed_train(self.model)
        else:
            self._initialize_deepspeed_inference(self.model)

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

    def _auto_select_batch_size(self) -> int:
        # DeepSpeed divides by it for the throughput that it prints. lightning makes the training loader once more to
        # look it up, which may draw random numbers, and not every loader has it.
        assert self.lightning_module is not None
        size = getattr(self.lightning_module.trainer.fit_loop._data_source.instance, "batch_size", None)
        return size if isinstance(size, int) and size > 0 else 1

    def _format_batch_size_and_grad_accum_config(self) -> None:
        super()._format_batch_size_and_grad_accum_config()
        # The loop divides the loss by the number of accumulated batches; the engine would do it again.
        self.config["gradient_accumulation_steps"] = 1


@contextmanager
def counted_backward(engine: Any) -> Iterator[None]:
    """Let backward passes of others count as one of a DeepSpeed engine."""
    with engine._running_engine_backward_lock:
        engine._running_engine_backward_count += 1
        engine._running_engine_backward = True
    try:
        yield
        engine._backward_epilogue()
    finally:
        with engine._running_engine_backward_lock:
            engine._running_engine_backward_count -= 1
            engine._running_engine_backward = engine._running_engine_backward_count > 0


def keep_gradients_whole(engine: Any) -> bool:
    """Let a DeepSpeed engine leave gradients in the parameters, on each worker, until they are handed over to it.

    Returns:
        Whether it can: not in all combinations of stage and precision does it accumulate in the parameters.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization():
        if not hasattr(optimizer, "_coalesce_grad_reduction") or getattr(optimizer, "use_grad_accum_attribute", False):
            return False
        optimizer._coalesce_grad_reduction = True
    engine.enable_backward_allreduce = False
    return True


def hand_over_gradients(engine: Any) -> None:
    """Let a DeepSpeed engine reduce the gradients that it was to leave in the parameters, right before its step."""
    optimizer, stage = engine.optimizer, int(engine.zero_optimization_stage())
    if stage == 0:
        return
    begin_accumulation(engine)
    optimizer._coalesce_grad_reduction = False
    # Stage 1 reduces at the boundary only; stages 2 and 3 draw their shards together in the step itself.
    optimizer.set_gradient_accumulation_boundary(stage == 1)
    try:
        if stage == 3:
            engine._flush_coalesced_reduction_zero3(optimizer)
        else:
            engine._flush_coalesced_reduction_zero12(optimizer)
    finally:
        optimizer._coalesce_grad_reduction = True


def begin_accumulation(engine: Any) -> None:
    """Let the next backward pass of a DeepSpeed engine begin a new sum of gradients, whatever has come before it.

    DeepSpeed does so in its step only, and not all of it: from stage 3's shards the gradient of a parameter that gets
    none in a step would be taken once more.
    """
    optimizer, stage = engine.optimizer, int(engine.zero_optimization_stage())
    if stage == 0:
        return
    if stage == 3:
        optimizer.grad_partitions_flat_buffer.zero_()
        optimizer._offload_boundary_param_ids = set()
        optimizer.micro_step_id = 0
        flats = optimizer.fp32_partitioned_groups_flat
    else:
        for gradients in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            gradients.update(dict.fromkeys(gradients))
        optimizer._offload_accumulated_param_ids = set()
        optimizer.micro_step_id = -1
        optimizer.norm_for_param_grads = {}
        flats = optimizer.single_partition_of_fp32_groups
    for flat in flats:
        if flat.grad is not None:  # they stay where the optimizer is offloaded
            flat.grad.zero_()


def parameters_of_groups(engine_optimizer: Any) -> list[list[nn.Parameter]]:
    """Return the parameters that ZeRO trains, by group."""
    stage_3 = hasattr(engine_optimizer, "fp16_groups")
    groups: list[list[nn.Parameter]] = engine_optimizer.fp16_groups if stage_3 else engine_optimizer.bit16_groups
    return groups


def begin_backward(engine_optimizer: Any) -> None:
    """Let ZeRO add the gradients of the next backward pass to those before; it counts on a forward pass in between."""
    if hasattr(engine_optimizer, "clear_backward_seen_flag"):
        engine_optimizer.clear_backward_seen_flag()


def replace_zero_grad(strategy: Strategy, zero_grad: Callable[..., None]) -> None:
    """Let a function of ours clear the gradients of a strategy's one optimizer, and of lightning's wrapper of it."""
    (optimizer,), (wrapper,) = strategy.optimizers, strategy._lightning_optimizers
    vars(optimizer)["zero_grad"] = vars(wrapper)["zero_grad"] = zero_grad


def call_before_step(precision: Precision, module: LightningModule, optimizer: Any) -> None:
    """Run the hooks before the optimizer's step, and clip the gradients."""
    precision._after_closure(module, optimizer)


def is_in_optimizer(parameter: nn.Parameter) -> bool:
    """Tell whether the optimizer of an engine has a parameter, so that it has it in full precision."""
    if not hasattr(parameter, "ds_id"):
        return hasattr(parameter, "_hp_mapping")
    optimizer = vars(parameter).get("_z3_optimizer")  # there is none for evaluation
    return optimizer is not None and optimizer.get_param_id(parameter) in optimizer.grad_position


def flat_states(engine_optimizer: Any, group: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return this worker's parts of the parameters of a group, flat, and the optimizer's state of each.

    Args:
        engine_optimizer: what DeepSpeed makes of an optimizer, in ZeRO stages 1 to 3.
        group: number of the parameter group.
    """
    inner = engine_optimizer.optimizer
    if hasattr(engine_optimizer, "single_partition_of_fp32_groups"):  # stages 1 and 2
        flats = [engine_optimizer.single_partition_of_fp32_groups[group]]
    else:  # stage 3 cuts groups into subgroups
        flats = [
            flat
            for index, flat in enumerate(engine_optimizer.fp32_partitioned_groups_flat)
            if engine_optimizer.sub_group_to_group_id[index] == group
        ]
    return [(flat, inner.state[flat]) for flat in flats]


def link_sharded_state(engine_optimizer: Any) -> None:
    """Let DeepSpeed find the parts of each parameter in a state that did not come from a first step."""
    if hasattr(engine_optimizer, "_hp_optimizer_states_linked"):  # stages 1 and 2
        engine_optimizer._hp_optimizer_states_linked = False
        engine_optimizer._lazy_init_hp_params_optimizer_state()


@contextmanager
def replacing_shards(engine_optimizer: Any) -> Iterator[None]:
    """Let the shards of parameters of ZeRO stage 3 be set in full precision, and what was made of them follow.

    As DeepSpeed's own loading does it.
    """
    whole = engine_optimizer.persistent_parameters  # small ones, which every worker keeps whole
    if whole:
        whole[0].partition(whole)
    yield
    groups = zip(engine_optimizer.fp16_partitioned_groups, engine_optimizer.fp16_partitioned_groups_flat, strict=True)
    for flat_fp32, (parameters, flat) in zip(engine_optimizer.fp32_partitioned_groups_flat, groups, strict=True):
        flat.data.copy_(flat_fp32.data)
        for parameter, part in zip(parameters, engine_optimizer.unflatten(flat, parameters), strict=True):
            parameter.data = part.data
    if whole:
        whole[0].all_gather(whole)


VERBOSE = "ITWINAI_VERBOSE"
"""The environment variable that lets frameworks print all that they print."""

# Regular expressions for warnings that concern neither the user's code nor the numbers.
_NOISE_WARNINGS = (
    # lightning looks for srun also where you do not use it.
    "The `srun` command is available on your system but is not used",
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, in every step.
    r"`torch\.distributed\.\w+` is deprecated",
    # lightning 2.6 asks torch 2.13's pytree in a way that torch deprecates.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # The training loop says it after the first epoch, and only if values are logged on steps.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)

# What lines of the log begin with that say what is not there, or recommend a product.
_NOISE_MESSAGES = (
    "GPU available: False",
    "TPU available: False",
    "💡 Tip: For seamless cloud",
    "Setting accelerator to CPU",
    "Trainer already configured with model summary callbacks: [<class 'itwinai.",
)

_NOISY_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "DeepSpeed")


def _is_verbose() -> bool:
    return os.environ.get(VERBOSE, "0") != "0"


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE_MESSAGES)


def silence_known_noise() -> None:
    """Silence what concerns neither the user's code nor ours; for processes that are itwinai's own."""
    if _is_verbose():
        return
    for message in _NOISE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_no_noise)


def silence_sockets() -> None:
    """Let torch's C++ code print errors only, in a worker: when another one is killed it warns of each socket.

    The variable TORCH_CPP_LOG_LEVEL would say so, and is read when torch is imported, which the caller has done.
    """
    if _is_verbose() or "TORCH_CPP_LOG_LEVEL" in os.environ:
        return
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    with suppress(OSError, ValueError):  # another system, or a torch that is built with glog
        ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_log_level").value = 2


@contextmanager
def known_noise_silenced() -> Iterator[None]:
    """Silence it for a while; for processes of the user, whose own filters stay as they are."""
    filters = list(warnings.filters)
    loggers = [one for one in map(logging.getLogger, _NOISY_LOGGERS) if _is_no_noise not in one.filters]
    silence_known_noise()
    ours = [one for one in warnings.filters if one not in filters]
    try:
        yield
    finally:
        for one in ours:
            if one in warnings.filters:  # the user's code may have reset them
                cast(list[Any], warnings.filters).remove(one)
        forget_warned()
        for logger in loggers:
            logger.removeFilter(_is_no_noise)


# --------------------------------------------------------------------------------- settings of the process


def validates_distributions() -> bool:
    """Tell whether torch's distributions validate their arguments by default."""
    return torch.distributions.Distribution._validate_args


def print_options() -> dict[str, Any]:
    """Return how torch prints tensors."""
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def set_print_options(options: dict[str, Any]) -> None:
    """Let torch print tensors as another process does."""
    vars(torch._tensor_str.PRINT_OPTS).update(options)


def forget_warned() -> None:
    """Let Python look at changed warning filters again also where it has warned before."""
    warnings._filters_mutated()  # type: ignore[attr-defined]


def print_recorded_warnings() -> None:
    """Let warnings be printed that `warnings.catch_warnings(record=True)` keeps in a list, which only it looks at."""
    if getattr(warnings._showwarnmsg_impl, "__name__", "") == "append":  # type: ignore[attr-defined]
        warnings._showwarnmsg_impl = _print_warning  # type: ignore[attr-defined]


def _print_warning(message: Any) -> None:
    sys.stderr.write(warnings._formatwarnmsg(message))  # type: ignore[attr-defined]


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


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Let a trainer have these callbacks, and no others."""
    vars(trainer)["callbacks"] = callbacks


class CallbackConnector(_CallbackConnector):
    """lightning's connector of callbacks, which tells which the module has brought.

    Args:
        trainer: the trainer.
        stock: the connector that it takes the place of.
    """

    trainer: Trainer

    def __init__(self, trainer: Trainer, stock: _CallbackConnector) -> None:
        super().__init__(trainer)
        vars(self).update(vars(stock))

    def joined(self, brought: list[Callback]) -> None:
        """Act upon callbacks that the module's ``configure_callbacks`` has brought; in each worker, before any hook."""

    def _attach_model_callbacks(self) -> None:
        before = {id(callback) for callback in callbacks(self.trainer)}
        super()._attach_model_callbacks()
        self.joined([callback for callback in callbacks(self.trainer) if id(callback) not in before])


def replace_callback_connector(trainer: Trainer, make: Callable[[Trainer, Any], CallbackConnector]) -> None:
    """Let another connector attach the module's callbacks."""
    trainer._callback_connector = make(trainer, trainer._callback_connector)


def attach(trainer: Trainer, module: LightningModule, datamodule: Any) -> None:
    """Leave a trainer attached to its module and datamodule, as after a local run."""
    trainer.strategy._lightning_module = module
    trainer.strategy.model = module
    module.trainer = trainer
    if datamodule is not None:
        vars(trainer)["datamodule"] = datamodule
        datamodule.trainer = trainer


def datamodule_of(arguments: tuple[Any, ...]) -> LightningDataModule | None:
    """Return the datamodule among the arguments of an entry point of the trainer, if there is one."""
    return next((value for value in arguments if isinstance(value, LightningDataModule)), None)


def metric_state(metric: Metric) -> dict[str, Any]:
    """Return what a metric has accumulated, by attribute."""
    names = (*metric._defaults, "_update_count", "_computed", "_cache")
    return {name: vars(metric)[name] for name in names if name in vars(metric)}


def is_updated(metric: Metric) -> bool:
    """Tell whether a metric has accumulated something since its last reset."""
    return metric._update_count > 0 and not metric._is_synced


def version_of(tensor: Tensor) -> int | None:
    """Return the number of changes in place that a tensor has seen; None where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module is what ``torch.compile(module)`` returns."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Tell whether ``module.compile()`` was called."""
    return module._compiled_call_impl is not None


ParameterHooks = dict[str, tuple[list[Any], list[Any]]]


def parameter_hooks(module: nn.Module) -> ParameterHooks:
    """Return the hooks on a module's parameters by name: those on gradients, and those after their accumulation."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    found = {
        name: tuple(list((getattr(parameter, kind) or {}).values()) for kind in kinds)
        for name, parameter in module.named_parameters()
    }
    return {name: hooks for name, hooks in found.items() if any(hooks)}  # type: ignore[misc]


def register_parameter_hooks(module: nn.Module, hooks: ParameterHooks) -> None:
    """Register hooks that `parameter_hooks` has returned."""
    parameters = dict(module.named_parameters())
    for name, (on_gradients, after_accumulation) in hooks.items():
        for hook in on_gradients:
            parameters[name].register_hook(hook)
        for hook in after_accumulation:
            parameters[name].register_post_accumulate_grad_hook(hook)


def module_internals() -> frozenset[str]:
    """Return the attribute names that Lightning and torch keep on a LightningModule for themselves."""
    from lightning.pytorch import LightningModule

    return frozenset(vars(LightningModule())) | {"_trainer", "_fabric", "_jit_internal"}


def replace_hyperparameters(module: LightningModule, parameters: dict[str, Any]) -> None:
    """Let a module have these hyperparameters, as if it had been made with them."""
    module._set_hparams(parameters)
    vars(module)["_hparams_initial"] = copy.deepcopy(module._hparams)


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


def callback_metric(trainer: Trainer, key: str) -> float:
    """Return a value as callbacks have last read it, or NaN if there is none; nothing is computed or exchanged."""
    value = trainer._logger_connector._callback_metrics.get(key)
    return float("nan") if value is None else float(value)


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
        forget_loading(loop)  # ended, not interrupted: a second fit() starts at the next epoch
    for name, value in loops["fit_loop"].items():
        setattr(trainer.fit_loop, name, value)


def forget_loading(loop: _Loop) -> None:
    """Let a loop and those in it take what was loaded for what they have run themselves."""
    # Not by the setter of `restarting`: with max_steps the fit loop turns False into True.
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            forget_loading(child)


def is_fitting(module: LightningModule | None) -> bool:
    """Tell whether the current entry point of a module's trainer is ``fit``."""
    return module is not None and module.trainer.state.fn == TrainerFn.FITTING


def is_predicting(trainer: Trainer) -> bool:
    """Tell whether the trainer's current or last entry point is ``predict``."""
    return trainer.state.fn == TrainerFn.PREDICTING


def mark_interrupted(trainer: Trainer) -> None:
    """Leave a trainer in the state in which an exception leaves it."""
    trainer.state.status = TrainerStatus.INTERRUPTED
    trainer.state.stage = None


# ---------------------------------------------------------------------------------------------- dataloaders


def replace_dataloader_preparation(
    trainer: Trainer,
    prepare: Callable[[DataLoader, RunningStage, bool], DataLoader],
    prepare_other: Callable[[Any, RunningStage], Any] | None = None,
) -> None:
    """Let a function of ours prepare each DataLoader where Lightning would inject its DistributedSampler.

    Args:
        trainer: the trainer.
        prepare: gets the loader, the stage, and whether its dataset has indices; returns the loader to use.
        prepare_other: gets the loader and the stage for what is no DataLoader, or is dealt out by the user; returns
            the loader to use. By default they stay as they are.
    """
    connector = trainer._data_connector
    stock = type(connector)._prepare_dataloader
    vars(connector)["_prepare_dataloader"] = functools.partial(
        _prepare_dataloader, connector, stock, prepare, prepare_other
    )


def _prepare_dataloader(
    connector: Any,
    stock: Callable[..., object],
    prepare: Callable[[DataLoader, RunningStage, bool], DataLoader],
    prepare_other: Callable[[Any, RunningStage], Any] | None,
    dataloader: Any,
    shuffle: bool,
    mode: RunningStage,
) -> object:
    flags = connector.trainer._accelerator_connector
    if isinstance(dataloader, DataLoader):
        # A collection of loaders that the user has made keeps what the last run has put into it.
        dataloader = vars(dataloader).get(_PREPARED_FROM, dataloader)
    given = dataloader
    if (
        not isinstance(dataloader, DataLoader)
        or not flags.use_distributed_sampler
        or isinstance(dataloader.sampler, DistributedSampler)  # the user deals the samples out
    ):
        if flags.is_distributed and prepare_other is not None:
            dataloader = prepare_other(dataloader, mode)
        prepared = stock(connector, dataloader, shuffle=shuffle, mode=mode)
    elif flags.is_distributed or mode in (RunningStage.TRAINING, RunningStage.PREDICTING):
        prepared = prepare(dataloader, mode, not has_iterable_dataset(dataloader))
    else:
        prepared = stock(connector, dataloader, shuffle=shuffle, mode=mode)
    if isinstance(prepared, DataLoader) and prepared is not given:
        vars(prepared)[_PREPARED_FROM] = given
    return prepared


# The attribute of a loader of ours that holds the user's.
_PREPARED_FROM = "_itwinai_prepared_from"


def _copied(dataloader: Loader) -> Loader:
    """Return a loader with the same attributes, whatever its class makes of copying and of its constructor.

    To call the constructor again takes its arguments, which the loader may not have kept, or not as they were given.
    """
    copied: Loader = object.__new__(type(dataloader))
    vars(copied).update(vars(dataloader))
    vars(copied)["_iterator"] = None  # persistent workers belong to the loader that has started them
    return copied


Loader = TypeVar("Loader", bound=DataLoader)


def with_batch_size(dataloader: Loader, batch_size: int) -> Loader:
    """Return a loader like another, with another batch size.

    Args:
        dataloader: a loader with a batch size.
        batch_size: that of the new one.
    """
    changed = _copied(dataloader)
    batches = BatchSampler(dataloader.sampler, batch_size, dataloader.drop_last)
    vars(changed).update(batch_size=batch_size, batch_sampler=batches)
    return changed


def with_class(dataloader: DataLoader, loader_class: type[Loader]) -> Loader:
    """Return a loader like another, of a subclass of its class that needs no attributes of its own."""
    changed: Any = _copied(dataloader)
    changed.__class__ = loader_class
    return changed


def with_sampler(dataloader: DataLoader, sampler: Any, stage: RunningStage) -> DataLoader:
    """Return a loader like another, of the same class, that draws from another sampler.

    Args:
        dataloader: the user's loader.
        sampler: a batch sampler; for a loader with ``batch_size=None`` a sampler.
        stage: the stage that the loader is for.

    Raises:
        ConfigurationError: the loader's class has begun to iterate, or computes its length, in its constructor, and
            cannot be made with another sampler.
    """
    batched = dataloader.batch_sampler is not None
    if batched and stage == RunningStage.PREDICTING:
        dealt, sampler = sampler, _IndexBatchSamplerWrapper(sampler)  # prediction writers ask it for the indices
        vars(sampler)["sampler"] = dealt  # to which lightning announces the epoch; the wrapper hides properties
    if any(isinstance(value, _BaseDataLoaderIter) for name, value in vars(dataloader).items() if name != "_iterator"):
        return _built_anew(dataloader, sampler)
    name = "batch_sampler" if batched else "sampler"
    given = getattr(dataloader, name)
    changed = _copied(dataloader)
    scope = vars(changed)
    scope.update({attribute: sampler for attribute, value in scope.items() if value is given})
    if getattr(changed, name) is not sampler:
        return _built_anew(dataloader, sampler)
    if type(dataloader).__len__ is not DataLoader.__len__:
        _mend_length(dataloader, changed, given, sampler)
    return changed


def _mend_length(dataloader: DataLoader, changed: DataLoader, given: Any, sampler: Any) -> None:
    """Let a loader whose class has a length of its own have that of its new sampler, if it had that of the given."""
    lengths = [sized_len(sized) for sized in (dataloader, changed, given, sampler)]
    before, after, given_length, length = lengths
    if None in lengths or given_length == length or before != after:
        return
    if before != given_length:
        raise ConfigurationError(
            f"{type(dataloader).__name__} has a length of its own, {before}, with {given_length} batches in its "
            f"sampler, and still has it with {length} of them: it cannot be told how many batches it gives. Let "
            "its __len__ follow from len(self.batch_sampler), or divide the samples yourself and let the trainer take "
            "the loader as it is: ItwinaiTrainer(use_distributed_sampler=False)."
        )
    cls: Any = type(changed)
    own: Any = type(cls.__name__, (cls,), {"__len__": DataLoader.__len__, "__module__": cls.__module__})
    cast_changed: Any = changed
    cast_changed.__class__ = own


def _built_anew(dataloader: DataLoader, sampler: Any) -> DataLoader:
    """Call the constructor of a loader again, which has begun to iterate in it, as lightning does."""
    plain = copy.copy(dataloader)
    batched = dataloader.batch_sampler is not None
    if batched:
        # lightning would build the user's batch sampler anew around a sampler, which not every class allows.
        vars(plain)["batch_sampler"] = BatchSampler(SequentialSampler(()), 1, False)
    try:
        args, kwargs = _get_dataloader_init_args_and_kwargs(plain, SequentialSampler(()), RunningStage.TRAINING)
        place = {"batch_sampler": sampler, "sampler": None} if batched else {"batch_sampler": None, "sampler": sampler}
        kwargs.update(place, shuffle=False, drop_last=False, batch_size=1 if batched else None)
        named = dict(zip(getattr(dataloader, "__pl_saved_arg_names", ()), args, strict=False))
        return _reinstantiate_wrapped_cls(dataloader, **{**named, **kwargs})
    except (MisconfigurationException, TypeError) as error:
        raise ConfigurationError(
            f"{type(dataloader).__name__} begins to iterate in its constructor, or hides its sampler, and cannot be "
            f"made with another one: {error} Divide the samples yourself and let the trainer take the loader as it is: "
            "ItwinaiTrainer(use_distributed_sampler=False)."
        ) from error


def with_index_sampler(dataloader: DataLoader, sampler: Any) -> DataLoader:
    """Return a loader like another, with the same batch size, that draws its indices from another sampler.

    Args:
        dataloader: the user's loader, without a batch sampler of the user's.
        sampler: a sampler of indices.
    """
    assert dataloader.batch_size is not None
    changed = _copied(dataloader)
    vars(changed).update(
        sampler=sampler, batch_sampler=BatchSampler(sampler, dataloader.batch_size, dataloader.drop_last)
    )
    return changed


def without_index_wrapper(sampler: Any) -> Any:
    """Return a sampler without what notes the indices that were predicted."""
    return sampler._batch_sampler if isinstance(sampler, _IndexBatchSamplerWrapper) else sampler


def prediction_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders of a prediction, as they are iterated."""
    combined = trainer.predict_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def with_worker_init(dataloader: Loader, function: Callable[[int], None]) -> Loader:
    """Return a loader like another, whose processes are initialised by another function."""
    changed = _copied(dataloader)
    changed.worker_init_fn = function
    return changed


def with_iterator(dataloader: Loader, wrap: Callable[[Callable[[], Any]], Any]) -> Loader:
    """Return a loader like another, whose iterators are made by another function.

    Args:
        dataloader: a loader.
        wrap: gets what makes the loader's own iterator, and returns an iterator. That of a loader with processes has
            to be the loader's own.
    """
    changed = _copied(dataloader)
    vars(changed)["_get_iterator"] = functools.partial(wrap, functools.partial(type(changed)._get_iterator, changed))
    return changed


def seeds_loader_workers(dataloader: DataLoader) -> bool:
    """Tell whether lightning initialises the loader's processes, as `seed_everything` was told: each rank's its own."""
    return bool(int(os.environ.get("PL_SEED_WORKERS", 0))) and dataloader.worker_init_fn is None


def set_seed_of_loader_worker(seed: int) -> None:
    """Let `get_worker_info` in a process of a DataLoader tell a seed that was set later."""
    info: Any = get_worker_info()
    if info is not None:
        object.__setattr__(info, "seed", seed)  # it refuses to be changed


class _SharedSource(_DataLoaderSource):
    """Makes loaders in a context; lightning asks it for those of a stage."""

    context: Callable[[], AbstractContextManager[None]]

    def dataloader(self) -> Any:
        with self.context():
            return super().dataloader()


def make_loaders_within(trainer: Trainer, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Let the hooks that make loaders run in a context."""
    loops = (trainer.fit_loop.epoch_loop.val_loop, *(getattr(trainer, name) for name in _LOOPS))
    for loop in loops:
        loop._data_source = _SharedSource(loop._data_source.instance, loop._data_source.name)
        loop._data_source.context = context


def iterates_plainly(dataloader: DataLoader) -> bool:
    """Tell whether a loader is iterated as torch's own class: each time from its sampler."""
    return type(dataloader).__iter__ is DataLoader.__iter__ and not any(
        isinstance(value, _BaseDataLoaderIter) for name, value in vars(dataloader).items() if name != "_iterator"
    )


# ---------------------------------------------------------------------------------------------------- loops

# The releases of lightning whose loops ours were compared with, hook by hook and bit by bit.
VERIFIED_LOOPS = ("2.6.6",)


class TrainingEpochLoop(_TrainingEpochLoop):
    """lightning's training epoch loop, which leaves it to a public method whether SIGTERM ends the run here."""

    def stop_if_agreed(self) -> None:
        """Raise `SIGTERMException` if the workers have agreed to stop before this batch."""
        raise NotImplementedError

    def check_monitored(self, key: str, value: float) -> None:
        """Act upon the value that a plateau scheduler is about to be given."""

    def _broadcast_sigterm_tensor(self) -> None:
        self.stop_if_agreed()

    def _get_monitor_value(self, key: str) -> Any:
        value = super()._get_monitor_value(key)
        self.check_monitored(key, float("nan") if value is None else float(value))
        return value


DataFetcher = _DataFetcher
DataLoaderIterFetcher = _DataLoaderIterDataFetcher
StockEvaluationLoop = _EvaluationLoop


class EvaluationLoop(_EvaluationLoop):
    """lightning's evaluation loop, which leaves each batch to a public method."""

    def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        """Run the step and its hooks on one batch."""
        super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)

    def _evaluation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        self.evaluate_batch(batch, batch_idx, dataloader_idx, dataloader_iter)

    def end_loader(self) -> None:
        """Do what is to be done where the batches of a loader have ended, on all workers, before any hook."""

    def _store_dataloader_outputs(self) -> None:
        self.end_loader()
        super()._store_dataloader_outputs()

    def begin_end(self) -> None:
        """Note that the hooks at the end of an evaluation are about to be called."""

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.begin_end()
        super()._on_evaluation_end(*args, **kwargs)

    @property
    def loaders(self) -> list[Any]:
        """The loaders, once they are made."""
        return [] if self._combined_loader is None else list(self._combined_loader.flattened)

    def read_history(self) -> dict[str, Any]:
        """Return what a loop within a fit knows of its past, and lightning does not save."""
        return {"reloaded": self._last_val_dl_reload_epoch, "seen": dict(self._seen_batches_per_dataloader)}

    def write_history(self, history: Mapping[str, Any]) -> None:
        """Set what `read_history` returned, once the loaders are made."""
        self._last_val_dl_reload_epoch = history["reloaded"]
        self._seen_batches_per_dataloader.update(history["seen"])


class FitLoop(_FitLoop):
    """lightning's fit loop, with its private attributes and methods under public names."""

    def loaders_made(self, loader: CombinedLoader) -> None:
        """Act upon the training loaders, which are about to be iterated."""

    def _load_combined_loader_states(self) -> None:
        super()._load_combined_loader_states()
        assert self._combined_loader is not None
        self.loaders_made(self._combined_loader)

    def load_loaders(self) -> None:
        """Restore the states of loaders, which lightning does not do at the end of an epoch."""
        assert self._combined_loader is not None
        self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
        self._combined_loader_states_to_load = []

    @property
    def combined_loader(self) -> CombinedLoader | None:
        """The training loaders, once they are made."""
        return self._combined_loader

    @property
    def last_reload(self) -> float:
        """The epoch in which the training loaders were made."""
        return self._last_train_dl_reload_epoch

    @last_reload.setter
    def last_reload(self, epoch: float) -> None:
        self._last_train_dl_reload_epoch = epoch

    def progress(self) -> dict[str, Any]:
        """Return the progress of this loop and of those in it, without the states of loaders."""
        loader, self._combined_loader = self._combined_loader, None
        try:
            return self.state_dict()
        finally:
            self._combined_loader = loader

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Restore what `progress` returned."""
        states = self._combined_loader_states_to_load
        self.load_state_dict(progress)
        self._combined_loader_states_to_load = states


def replace_fit_loop(trainer: Trainer, loop_class: type[_FitLoop]) -> None:
    """Let another class run the trainer's fits, with the same loop of epochs."""
    stock = trainer.fit_loop
    trainer.fit_loop = loop_class(trainer, min_epochs=stock.min_epochs, max_epochs=stock.max_epochs)
    trainer.fit_loop.epoch_loop = stock.epoch_loop


class _LaterLoader(CombinedLoader):
    """Training loaders that are not iterated before it is known where they go on."""

    waits: bool

    def __iter__(self) -> Any:
        if not self.waits:
            return super().__iter__()
        # For the length alone: lightning iterates as soon as the loaders are made.
        flattened, self._flattened = self._flattened, [_Sized(loader) for loader in self._flattened]
        try:
            return super().__iter__()
        finally:
            self._flattened = flattened

    def __next__(self) -> Any:
        if self.waits:
            raise StopIteration
        return super().__next__()


class _Sized:
    """Has the length of a loader, and nothing else of it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def iterate_later(loader: CombinedLoader) -> None:
    """Let training loaders not be iterated until `iterate_now` is called."""
    if type(loader) is CombinedLoader:
        loader.__class__ = _LaterLoader
    if isinstance(loader, _LaterLoader):
        loader.waits = True


def iterate_now(loader: CombinedLoader) -> None:
    """Let training loaders be iterated from now on."""
    if isinstance(loader, _LaterLoader):
        loader.waits = False


def loader_mode(loader: CombinedLoader) -> str:
    """Return how training loaders are combined, such as ``max_size_cycle``."""
    return loader._mode


def leave_fetches_out_of_profile(loop: _Loop, data_fetcher: _DataFetcher | None = None) -> None:
    """Let a loop's fetcher not tell the profiler of every batch, if the profiler is one that does nothing.

    Args:
        loop: a loop that has just begun its run.
        data_fetcher: its fetcher, unless it is an evaluation loop, which has its own.
    """
    fetcher = loop._data_fetcher if isinstance(loop, _EvaluationLoop) else data_fetcher
    profiler = loop.trainer.profiler  # type: ignore[attr-defined]
    if fetcher is not None and type(profiler) is PassThroughProfiler:
        fetcher._start_profiler = fetcher._stop_profiler = _do_nothing


def _do_nothing() -> None:
    return None


def evaluation_options(loop: _EvaluationLoop) -> dict[str, Any]:
    """Return the arguments that an evaluation loop was made with."""
    return {
        "trainer_fn": loop._trainer_fn,
        "stage": loop._stage,
        "verbose": loop.verbose,
        "inference_mode": loop.inference_mode,
    }


def evaluates_in_sequence(loop: _EvaluationLoop) -> bool:
    """Tell whether each batch of an evaluation comes from one loader."""
    return loop._is_sequential


def evaluates_several_loaders(loop: _EvaluationLoop) -> bool:
    """Tell whether an evaluation goes through several loaders, one after the other."""
    return loop._is_sequential and loop.num_dataloaders > 1


def evaluation_loaders(loop: _EvaluationLoop) -> list[Any]:
    """Return the loaders of an evaluation, as they are iterated."""
    combined = loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def count_evaluated_batch(loop: _EvaluationLoop, dataloader_idx: int) -> int:
    """Count a batch of a loader; return how many came before it, which is the step that loggers are given."""
    loop._has_run = True
    before = loop._seen_batches_per_dataloader[dataloader_idx]
    loop._seen_batches_per_dataloader[dataloader_idx] = before + 1
    return before


def replace_evaluation_loops(trainer: Trainer, make: Callable[[Any], _EvaluationLoop]) -> None:
    """Let other loops run ``validate`` and ``test``."""
    trainer.validate_loop = make(trainer.validate_loop)
    trainer.test_loop = make(trainer.test_loop)


# The attribute of a LightningModule by which `self.log` finds out in which hook it is called.
HOOK_NAME = "_current_fx_name"


def datamodule(trainer: Trainer) -> Any:
    """Return the trainer's datamodule, or None."""
    return vars(trainer).get("datamodule")


def logger_connector(trainer: Trainer) -> Any:
    """Return what keeps a trainer's logged values."""
    return trainer._logger_connector


def optimizer_progress(trainer: Trainer) -> _OptimizerProgress:
    """Return how often the optimizer of automatic optimization has stepped and was cleared."""
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer


def lightning_optimizer(strategy: Strategy) -> LightningOptimizer:
    """Return lightning's wrapper of the one optimizer of automatic optimization."""
    return strategy._lightning_optimizers[0]


def takes_batch_idx(step: Callable[..., Any]) -> bool:
    """Tell whether a step takes the index of the batch, under whatever name."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def transfer_batch(trainer: Trainer, batch: Any, dataloader_idx: int) -> Any:
    """Convert a batch and bring it to the device, by all hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=dataloader_idx)


def only_steps_optimizer(strategy: Strategy) -> bool:
    """Tell whether a strategy's ``optimizer_step`` does nothing itself."""
    if "optimizer_step" in vars(strategy):
        return False
    if type(strategy).optimizer_step is Strategy.optimizer_step:
        return True
    if type(strategy).optimizer_step is not LightningDDPStrategy.optimizer_step:
        return False
    assert isinstance(strategy, LightningDDPStrategy)
    return strategy._model_averager is None


def without_gradient_sync(strategy: Strategy) -> AbstractContextManager[None]:
    """Return a context in which backward does not exchange gradients."""
    return _block_parallel_sync_behavior(strategy, block=True)


def call_optimizer_step(trainer: Trainer, batch_idx: int, optimizer: LightningOptimizer, closure: Any) -> None:
    """Step through all hooks of lightning."""
    call._call_lightning_module_hook(trainer, "optimizer_step", trainer.current_epoch, batch_idx, optimizer, closure)


def skips_backward(trainer: Trainer) -> bool:
    """Tell whether an epoch only runs forward, as the one that renews BatchNorm's statistics for averaged weights."""
    return trainer.fit_loop._skip_backward


def call_backward(trainer: Trainer, loss: Tensor, optimizer: Any) -> None:
    """Propagate back through all hooks of lightning."""
    call._call_strategy_hook(trainer, "backward", loss, optimizer)


def clip_gradients(trainer: Trainer, optimizer: Any) -> None:
    """Clip the gradients as the trainer is told to."""
    trainer.precision_plugin._clip_gradients(
        trainer.lightning_module,
        optimizer,
        trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )


def closure_result(output: Any, window: int) -> ClosureResult:
    """Return what a training step returned as lightning passes it on.

    Args:
        output: a loss, a dictionary with one, or None.
        window: number of batches whose gradients are accumulated.
    """
    if window == 1 and type(output) is Tensor:  # a loss divided by one, without the division
        return ClosureResult(output)
    return ClosureResult.from_training_step_output(output, window)


def check_skipped_step(trainer: Trainer) -> None:
    """Warn of a training step that returned None; with several workers it is an error, as in lightning."""
    if trainer.world_size > 1:
        raise RuntimeError(
            "`training_step` returned None. With several workers the others would wait for the gradients for "
            "ever: return a loss in every step, for example one multiplied by zero."
        )
    Closure.warning_cache.warn("`training_step` returned `None`: this batch changes no weights.")


def optimize_manually(loop: _TrainingEpochLoop, batch: Any, batch_idx: int) -> Any:
    """Run a training step of manual optimization."""
    kwargs = loop._build_kwargs(OrderedDict(), batch, batch_idx)
    return loop.manual_optimization.run(kwargs)


def warn_of_none_batch(loop: _TrainingEpochLoop) -> None:
    """Warn, once, that the loader yields None instead of a batch."""
    loop._warning_cache.warn("train_dataloader yielded None: no training step is run for it.")


def skips_next_validation(loop: _TrainingEpochLoop) -> bool:
    """Tell whether a loop that was restarted has validated before its checkpoint was written."""
    return loop._skip_next_val


def validates_now(loop: _TrainingEpochLoop, data_fetcher: _DataFetcher) -> bool:
    """Tell whether validation is due after the batch in work."""
    return loop._skip_next_val or loop._should_check_val_fx(data_fetcher)


def begun_batches(loop: _TrainingEpochLoop) -> int:
    """Return the number of batches of the epoch whose training step has begun; those that a hook skips do not count."""
    return loop.batch_progress.current.started  # type: ignore[attr-defined]


def processed_epochs(loop: _FitLoop) -> int:
    """Return the number of epochs that a fit, or the one that it goes on with, has trained."""
    return loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def count_stepped_batch(loop: _TrainingEpochLoop) -> None:
    """Count a batch after which the optimizer has stepped; loggers number their steps by it."""
    loop._batches_that_stepped += 1


def stepped_batches(loop: _TrainingEpochLoop) -> int:
    """Return the number of batches after which the optimizer has stepped."""
    return loop._batches_that_stepped


def iterates_again(loop: _TrainingEpochLoop) -> bool:
    """Tell whether an epoch that begins iterates its loaders; the first finds them iterated."""
    trainer = loop.trainer
    return trainer.current_epoch > 0 and not trainer.fit_loop.is_resuming and not loop.restarting


def is_validation_due(loop: _TrainingEpochLoop, data_fetcher: _DataFetcher) -> bool:
    """Tell whether the batch in work would be followed by validation also if the run did not stop here."""
    trainer = loop.trainer
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return loop._should_check_val_fx(data_fetcher)
    finally:
        trainer.should_stop = stops


def skip_next_validation(loop: _TrainingEpochLoop) -> None:
    """Leave out the validation that may be due after the batch in work."""
    loop._skip_next_val = True


def is_epoch_over(loop: _TrainingEpochLoop) -> bool:
    """Tell whether the batches of the epoch are used up."""
    return loop._num_ready_batches_reached()


def does_nothing_per_batch(callback: Callback) -> bool:
    """Tell whether a callback's ``on_train_batch_end`` is lightning's and returns at once, in every step.

    That of a ModelCheckpoint does unless it saves every so many steps or seconds. A class of ours says it itself.
    """
    if "on_train_batch_end" in vars(callback):
        return False
    if isinstance(callback, ModelCheckpoint):
        return callback.is_idle_per_batch
    return (
        isinstance(callback, LightningModelCheckpoint)
        and type(callback).on_train_batch_end is LightningModelCheckpoint.on_train_batch_end
        and callback._every_n_train_steps < 1
        and callback._train_time_interval is None
    )


def flush_loggers(loop: _TrainingEpochLoop) -> None:
    """Let the loggers write what they hold, when the run is about to stop."""
    loop._save_loggers_on_train_batch_end()


IMPATIENT = 1.0
"""Seconds after a signal from which on another one ends the process at once. Launchers and schedulers both pass on the
same signal, so that a worker may get it twice."""


class SignalConnector(_SignalConnector):
    """lightning's signal handlers, which leave to others what SIGTERM means for several workers.

    lightning's own handler calls a collective operation, and the other workers may be in the midst of another one.

    Attributes:
        on_sigterm: called when SIGTERM has come. Without it the run of this process alone stops, at the next batch.
        signum: the signal that has come last.
        others: signals that mean the same as SIGTERM, unless somebody handles them.
        requeues: whether SLURM has asked to have its job queued again.
        ends_with_run: whether this process ends with the run, as workers do. The signal that has stopped them reaches
            some late, and must not kill them before they have said how the run has ended.
    """

    on_sigterm: Callable[[], None] | None = None
    signum = signal.SIGTERM
    others: tuple[signal.Signals, ...] = ()
    requeues = False
    ends_with_run = False
    _first_signal: float | None = None

    def register_signal_handlers(self) -> None:
        self._first_signal = None
        self.requeues = False
        before = signal.getsignal(signal.SIGTERM)
        if exits_at_once := str(getattr(before, "__module__", "")).startswith("ray."):
            # `ray.init` handles SIGTERM with an exit, which would come before the run has saved.
            self._register_signal(signal.SIGTERM, signal.SIG_DFL)
        super().register_signal_handlers()
        if exits_at_once:
            self._original_handlers[signal.SIGTERM] = before
        for other in self.others:
            if not self._has_already_handler(other):
                self._register_signal(other, self._sigterm_notifier_fn)

    def teardown(self) -> None:
        if self.ends_with_run and self.received_sigterm:
            self._original_handlers.update(dict.fromkeys((signal.SIGTERM, *self.others), signal.SIG_IGN))
        super().teardown()

    def _slurm_sigusr_handler_fn(self, signum: Any, _: Any) -> None:
        # lightning saves right here, in the midst of whatever the workers do.
        self.requeues = True
        self._sigterm_notifier_fn(signum, _)

    def _sigterm_notifier_fn(self, signum: Any, _: Any) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > IMPATIENT:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signal.Signals(signum)
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.received_sigterm:
            launcher.kill(signum)
        if self.on_sigterm is None:
            self.received_sigterm = True
        else:
            self.on_sigterm()


def replace_signal_connector(trainer: Trainer) -> None:
    """Let `SignalConnector` handle the trainer's signals."""
    trainer._signal_connector = SignalConnector(trainer)


def signal_connector(trainer: Trainer) -> SignalConnector:
    """Return what handles the signals of a trainer whose connector was replaced."""
    connector = trainer._signal_connector
    assert isinstance(connector, SignalConnector)
    return connector


def expect_late_signals(trainer: Trainer) -> None:
    """Let this worker end by itself when a signal has stopped the run, however late it reaches this process."""
    connector = trainer._signal_connector
    if isinstance(connector, SignalConnector):
        connector.ends_with_run = True


def default_store() -> dist.Store:
    """Return a store of the default process group, for use in a thread of its own."""
    return dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]


def can_stop_early(trainer: Trainer) -> bool:
    """Tell whether a fit may end as soon as ``should_stop`` is set: it has had its least epochs and steps."""
    return trainer.fit_loop._can_stop_early


def is_training_done(loop: _TrainingEpochLoop) -> bool:
    """Tell whether the epoch's batches, or the run's steps, are used up."""
    return loop._is_training_done


def replace_training_epoch_loop(trainer: Trainer, loop_class: type[_TrainingEpochLoop]) -> None:
    """Let another class run the trainer's training epochs."""
    stock = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = loop_class(trainer, min_steps=stock.min_steps, max_steps=stock.max_steps)


# ------------------------------------------------------------------------------------------- logged values


class ResultCollection(_ResultCollection):
    """lightning's collection of logged values, which notes whether `self.log` was given a batch size.

    Attributes:
        is_size_given: whether it was, for the value in work.
    """

    is_size_given = False

    def _extract_batch_size(self, value: _ResultMetric, batch_size: int | None, meta: Any) -> int:
        self.is_size_given = batch_size is not None
        return super()._extract_batch_size(value, batch_size, meta)


ResultMetric = _ResultMetric
LoggerConnector = _LoggerConnector
Metrics = _METRICS


def batch_size_of(results: _ResultCollection, metric: _ResultMetric, batch_size: int | None) -> int:
    """Return the weight of a logged value in the mean of its epoch."""
    if batch_size is None and results.batch_size is None and metric.meta.on_epoch and metric.meta.is_mean_reduction:
        results.batch_size = common_size(results.batch)
    return results._extract_batch_size(metric, batch_size, metric.meta)


def common_size(batch: Any) -> int | None:
    """Return the batch size of the most usual kinds of batches; None leaves it to lightning to find one."""
    tensors = batch.values() if type(batch) is dict else batch if type(batch) in (list, tuple) else (batch,)
    sizes = {tensor.shape[0] if type(tensor) is Tensor and tensor.ndim else None for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def plain_tensor(value: Tensor) -> Tensor:
    """Return a tensor without the class that somebody has derived of torch's: the same memory, the same graph.

    Such a class may refuse what is done with a number here, or cannot be loaded again from a checkpoint. One that holds
    its values elsewhere stays as it is.
    """
    if type(value) is Tensor or type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def result_key(results: _ResultCollection, hook: str, name: str, add_dataloader_idx: bool) -> str:
    """Return the key under which a value that was logged in a hook is kept."""
    key = f"{hook}.{name}"
    return f"{key}.{results.dataloader_idx}" if add_dataloader_idx and results.dataloader_idx is not None else key


def add_to_result(metric: _ResultMetric, value: Tensor, batch_size: int) -> None:
    """Add a detached value to what is kept of a key.

    As the metric's own ``update``, without torchmetrics' checks around it, and without exchanging values of the step.
    """
    metric._computed = None
    metric._update_count += 1
    metric.has_reset = False
    meta = metric.meta
    synced = is_synced(metric)
    if (
        value.dtype in (torch.float32, torch.float64)
        and (synced or not meta.sync.should or not meta.on_step)
        and (meta.is_mean_reduction or not meta.on_epoch)
    ):
        # The most usual case, in fewer calls.
        if meta.on_step:
            metric._forward_cache = value.clone()
            if not meta.on_epoch:
                metric.value = metric._forward_cache
                return
        metric.value = metric.value + value * batch_size
        metric.cumulated_batch_size = metric.cumulated_batch_size + batch_size
        return
    if not (meta.on_step and synced):
        _ResultMetric.update(metric, value, batch_size)
        return
    meta.sync.should = False  # lightning would exchange this one value now
    try:
        _ResultMetric.update(metric, value, batch_size)
    finally:
        meta.sync.should = True


def is_synced(metric: _ResultMetric) -> bool:
    """Tell whether a key is reduced over all workers. Those of a group of workers are exchanged by lightning."""
    sync = metric.meta.sync
    return sync.should and not sync.rank_zero_only and sync.group is None


def sync_operation(metric: _ResultMetric) -> str:
    """Return by what the values of the workers are reduced to one: ``mean``, ``sum``, ``max`` or ``min``."""
    return str(metric.meta.sync.op)


def step_value(metric: _ResultMetric) -> Tensor:
    """Return the value of the step in work."""
    assert metric._forward_cache is not None
    return metric._forward_cache


def step_value_if_any(metric: _ResultMetric) -> Tensor | None:
    """Return the value of the step in work, or None where the key has none."""
    if not metric.meta.on_step or not isinstance(metric._forward_cache, Tensor):
        return None
    value = metric._forward_cache
    return value.detach() if value.requires_grad and not metric.meta.enable_graph else value


def published_names(results: _ResultCollection, metric: _ResultMetric, on_step: bool) -> tuple[str, str]:
    """Return the names under which a key's value becomes readable: its own, and that of the step or the epoch."""
    return results._forked_name(metric, on_step)


def set_step_value(metric: _ResultMetric, value: Tensor) -> None:
    """Set the value of the step in work to that of all workers."""
    metric._forward_cache = value
    if not metric.meta.on_epoch:
        metric.value = value


def waits_for_epoch(metric: _ResultMetric) -> bool:
    """Tell whether a key's value of the epoch has to be reduced over the workers, and has not been."""
    return metric.is_tensor and metric.meta.on_epoch and metric._computed is None and is_synced(metric)


def epoch_state(metric: _ResultMetric) -> tuple[Tensor, Tensor | None]:
    """Return what is accumulated of a key, and for a mean the weight that belongs to it."""
    return metric.value, metric.cumulated_batch_size if metric.meta.is_mean_reduction else None


def set_epoch_value(metric: _ResultMetric, value: Tensor) -> None:
    """Set a key's value of the epoch."""
    metric._computed = value  # type: ignore[assignment]


def read_result(metric: _ResultMetric) -> dict[str, Any] | None:
    """Return what is kept of a key for the end of its epoch, as tensors and plain values; None if there is nothing."""
    meta = metric.meta
    if metric.has_reset or not meta.on_epoch:
        return None
    options = {name: getattr(meta, name) for name in _RESULT_OPTIONS}
    sync = meta.sync
    state: dict[str, Any] = {
        "options": {**options, "reduce_fx": meta.reduce_fx.__name__},
        "sync": {"_should": sync.should, "rank_zero_only": sync.rank_zero_only},
        "grouped": sync.group is not None,
        "is_tensor": metric.is_tensor,
        "updates": metric._update_count,
    }
    if metric.is_tensor:
        state["value"] = metric.value.detach().cpu()
        if meta.is_mean_reduction:
            state["weight"] = torch.as_tensor(metric.cumulated_batch_size).cpu()
    return state


_RESULT_OPTIONS = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)


def make_result(state: Mapping[str, Any], trainer: Trainer) -> _ResultMetric:
    """Make a key of what `read_result` returned, as `self.log` registers it."""
    meta = _Metadata(**state["options"])
    meta.sync = _Sync(fn=trainer.strategy.reduce, **state["sync"])
    metric = _ResultMetric(meta, state["is_tensor"])
    if not state["is_tensor"]:
        metric.value = trainer.lightning_module.get_submodule(meta.metric_attribute or "")
    return metric


def write_result(metric: _ResultMetric, state: Mapping[str, Any], device: torch.device) -> None:
    """Let a key go on with what `read_result` returned."""
    metric._update_count = state["updates"]
    metric._computed = None
    metric.has_reset = False
    if "value" in state:
        metric.value = state["value"].to(device, copy=True)
    if "weight" in state:
        metric.cumulated_batch_size = state["weight"].to(device, copy=True)


def go_on_iterating(connector: _LoggerConnector) -> None:
    """Note that the next batch of the loop is not its first."""
    connector._first_loop_iter = False


def read_metric(metric: Metric) -> dict[str, Any] | None:
    """Return what a metric of torchmetrics has accumulated; None if there is nothing."""
    if not metric._update_count:
        return None
    states = {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else [part.detach().cpu() for part in value]
        for name, value in metric.metric_state.items()
    }
    return {"updates": metric._update_count, "states": states}


def write_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Let a metric go on with what `read_metric` returned."""
    for name, value in kept["states"].items():
        there = (
            value.to(metric.device, copy=True) if isinstance(value, Tensor) else [v.to(metric.device) for v in value]
        )
        setattr(metric, name, there)
    metric._update_count = kept["updates"]
    metric._computed = None


def can_merge(metric: Metric) -> bool:
    """Tell whether what several workers have accumulated in a metric is that of one, once reduced."""
    return all(
        reduction in (dim_zero_sum, dim_zero_max, dim_zero_min, dim_zero_cat)
        for reduction in metric._reductions.values()
    )


def merge_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Add what `read_metric` returned for another worker to what a metric has accumulated."""
    there = {
        name: value.to(metric.device) if isinstance(value, Tensor) else [part.to(metric.device) for part in value]
        for name, value in kept["states"].items()
    }
    metric._update_count += kept["updates"]
    metric._reduce_states(there)


def count_iteration(connector: _LoggerConnector) -> None:
    """Note that a batch of the loop begins, the first or another."""
    first = connector._first_loop_iter
    if first is None:
        connector._first_loop_iter = True
    elif first:
        connector._first_loop_iter = False


def is_first_iteration(connector: _LoggerConnector) -> bool:
    """Tell whether the batch in work is the first of its loop."""
    return bool(connector._first_loop_iter)


def goes_on_logging(connector: _LoggerConnector, hook: str) -> bool:
    """Tell whether what a hook logs now is no new epoch, in which its values would have to be reset."""
    return connector._first_loop_iter is False or connector._current_fx == hook


def publish(connector: _LoggerConnector, metrics: _METRICS) -> None:
    """Make values readable as ``callback_metrics``, ``logged_metrics`` and ``progress_bar_metrics``."""
    connector._progress_bar_metrics.update(metrics["pbar"])
    connector._callback_metrics.update(metrics["callback"])
    connector._logged_metrics.update(metrics["log"])


def replace_logger_connector(trainer: Trainer, connector_class: type[_LoggerConnector]) -> None:
    """Let another class keep the trainer's logged values."""
    trainer._logger_connector = connector_class(trainer)


def replace_results(loop: Any, results: _ResultCollection) -> None:
    """Let another collection hold the logged values of a loop."""
    loop._results = results


# ---------------------------------------------------------------------------------------------- cloudpickle


def dynamic_class_id(cls: type) -> str | None:
    """Return the id by which cloudpickle knows a class that it sent by value, or None for an importable class."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)


def objects_of(*kinds: type) -> list[Any]:
    """Return the objects of this process that are of some classes, as its garbage collector knows them.

    By their type: an object that stands for another one would be asked what it is.
    """
    objects = gc.get_objects()
    wanted = {cls for cls in set(map(type, objects)) if issubclass(cls, kinds)}
    return [value for value in objects if type(value) in wanted]


def register_dynamic_classes(classes: Iterable[type]) -> None:
    """Give every class that cloudpickle would send by value an id now, which copies of this process then share.

    What a copy sends back is then of this process's own classes.

    Args:
        classes: all that there are.
    """
    for cls in classes:
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            cloudpickle.cloudpickle._get_or_create_tracker_id(cls)


class _ByValuePickler(cloudpickle.cloudpickle.Pickler):
    """cloudpickle's, with what `multiprocessing` and torch add for objects that processes share."""

    @property
    def dispatch_table(self) -> Mapping[type, Any]:
        extra = multiprocessing.reduction.ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        return ChainMap(extra, cloudpickle.cloudpickle.Pickler.dispatch_table)


def start_processes_by_value() -> None:
    """Let `multiprocessing` send by value what a process that it starts could not import, such as a script's dataset.

    A worker that was sent its payload has no script to import it from.
    """

    def dump(obj: Any, file: Any, protocol: int | None = None) -> None:
        _ByValuePickler(file, protocol).dump(obj)

    multiprocessing.reduction.dump = dump


def dynamic_class(class_id: str) -> type:
    """Return the class of this process that cloudpickle sent by value under an id."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[class_id]


# -------------------------------------------------------------------------------------------- checkpoints


class CheckpointConnector(_CheckpointConnector):
    """lightning's connector of checkpoints, which leaves to public methods what is beside lightning's own content."""

    trainer: Trainer

    selected: Any = None  # what is about to be restored; `_ckpt_path` is set only when it is read
    earlier: dict[str, Any] | None = None  # the progress that goes into a checkpoint, if not the present one

    def read_progress(self) -> dict[str, Any]:
        """Return the progress of the run, as it is in checkpoints."""
        return {"epoch": self.trainer.current_epoch, "loops": self._get_loops_state_dict()}

    def complete(self, checkpoint: dict[str, Any], weights_only: bool) -> None:
        """Add to the content of a checkpoint; all workers come here."""

    def adapt(self, checkpoint: dict[str, Any]) -> None:
        """Make the optimizers' states of a checkpoint fit to this run's optimizers."""

    def take(self, checkpoint: dict[str, Any]) -> None:
        """Take what the loops will need of a checkpoint that a fit goes on from."""

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict:
        checkpoint = super().dump_checkpoint(weights_only) | (self.earlier or {})
        self.complete(checkpoint, bool(weights_only))
        return checkpoint

    def choose(self, given: str | None) -> str | None:
        """Return what a fit goes on from, when a path, a special name or nothing is given."""
        return given

    def locate(self, path: str) -> str | None:
        """Return the path that a special name stands for, once the workers can speak to each other."""
        return path

    def _select_ckpt_path(self, state_fn: TrainerFn, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        if state_fn == TrainerFn.FITTING:
            ckpt_path = self.choose(ckpt_path)
        self.selected = super()._select_ckpt_path(state_fn, ckpt_path, *args, **kwargs)
        return self.selected

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        super().resume_start(self.locate(checkpoint_path) if checkpoint_path else checkpoint_path, weights_only)

    def explain_mismatch(self, weights: Mapping[str, Any], error: RuntimeError) -> None:
        """Raise what explains why the weights of a checkpoint do not fit to the module, if that is what is wrong."""

    def restore_model(self) -> None:
        try:
            super().restore_model()
        except RuntimeError as error:
            self.explain_mismatch(self._loaded_checkpoint.get("state_dict", {}), error)
            raise

    def restore_optimizers(self) -> None:
        if self._loaded_checkpoint:
            self.adapt(self._loaded_checkpoint)
        super().restore_optimizers()

    def restore_loops(self) -> None:
        super().restore_loops()
        if self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            self.take(self._loaded_checkpoint)


def replace_checkpoint_connector(trainer: Trainer, connector_class: type[CheckpointConnector]) -> None:
    """Let another class collect what is in the trainer's checkpoints."""
    trainer._checkpoint_connector = connector_class(trainer)


def checkpoint_connector(trainer: Trainer) -> _CheckpointConnector:
    """Return what collects the content of the trainer's checkpoints."""
    return trainer._checkpoint_connector


def training_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders as they are iterated, in the order of the user's collection."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def training_mode(trainer: Trainer) -> str:
    """Return how several training loaders are combined: ``min_size``, ``max_size`` or ``max_size_cycle``."""
    combined = trainer.fit_loop._combined_loader
    return "max_size_cycle" if combined is None else loader_mode(combined)


def step_values(trainer: Trainer) -> dict[str, float]:
    """Return the values for the loggers that this worker has logged in the step in work."""
    values = trainer._logger_connector.metrics["log"]
    return {name: float(value) for name, value in values.items()}


def batches_done(trainer: Trainer) -> tuple[int, int]:
    """Return how many batches this worker has trained with: in this epoch, and in all.

    Those count whose optimizer step is done: in a checkpoint that was written in the hooks after a batch, that batch
    is not completed.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.processed, progress.total.processed  # type: ignore[attr-defined]


def is_epoch_begun(trainer: Trainer) -> bool:
    """Tell whether a fit is within an epoch, or was when the checkpoint was written that it goes on from."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.started > progress.processed


def is_accumulating(trainer: Trainer) -> bool:
    """Tell whether there are gradients that wait for a later batch before the optimizer steps."""
    loop = trainer.fit_loop.epoch_loop
    if not trainer.lightning_module.automatic_optimization or not is_epoch_begun(trainer):
        return False
    batches = loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches != 0 and not loop._num_ready_batches_reached()


@contextmanager
def without_warning_of_mid_epoch() -> Iterator[None]:
    """Leave out lightning's warning that a run which goes on in mid-epoch begins the epoch anew."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        yield


def is_stateful(loader: Any) -> bool:
    """Tell whether lightning saves and restores a loader's own state."""
    return isinstance(loader, _Stateful)


class ModelCheckpoint(UnlistedModelCheckpoint):
    """lightning's callback that saves checkpoints, with its private attributes and methods under public names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replaced: dict[str, dict[str, Tensor]] = {}
        self.saving_to: str | None = None

    @property
    def is_idle_per_batch(self) -> bool:
        """Whether ``on_train_batch_end`` does nothing in every step."""
        return False

    @property
    def every_n_train_steps(self) -> int:
        """Number of steps between two checkpoints, or 0."""
        return self._every_n_train_steps

    @property
    def train_time_interval(self) -> timedelta | None:
        """Time between two checkpoints, or None."""
        return self._train_time_interval

    @property
    def last_time_checked(self) -> float:
        """When the last interval began, by the monotonic clock."""
        return self._last_time_checked or 0.0

    def saving(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Return the context in which checkpoints are saved and removed."""
        return nullcontext()

    def after_save(self, trainer: Trainer, filepath: str) -> None:
        """Act upon a checkpoint that was saved, or is being written."""

    def forget(self, path: str) -> None:
        """Take a checkpoint that could not be written out of the record of what there is."""
        self.best_k_models.pop(path, None)
        self.best_k_models |= self._replaced.pop(path, {})  # it was not removed, as nothing has taken its place
        best, worst = (min, max) if self.mode == "min" else (max, min)
        score = self.best_k_models.get
        if self.best_model_path == path:
            self.best_model_path = best(self.best_k_models, key=score, default="")  # type: ignore[arg-type]
            self.best_model_score = score(self.best_model_path)
        if self.kth_best_model_path == path:
            self.kth_best_model_path = worst(self.best_k_models, key=score, default="")  # type: ignore[arg-type]
        if self.last_model_path == path:
            self.last_model_path = ""
        if self._last_checkpoint_saved == path:
            self._last_checkpoint_saved = ""
            self._last_global_step_saved = 0

    def before_choice(self, trainer: Trainer) -> None:
        """Bring the record of what there is up to date, before it is decided what is saved and removed."""

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self.before_choice(trainer)
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        before = dict(self.best_k_models)
        super()._update_best_and_save(current, trainer, monitor_candidates)
        new = [path for path in self.best_k_models if path not in before]
        gone = {path: score for path, score in before.items() if path not in self.best_k_models}
        self._replaced = dict.fromkeys(new, gone)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.saving_to = filepath
        try:
            with self.saving(trainer):
                super()._save_checkpoint(trainer, filepath)
        finally:
            self.saving_to = None
        self.after_save(trainer, filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        with self.saving(trainer):
            super()._remove_checkpoint(trainer, filepath)


@contextmanager
def postponing_saves(
    callbacks: list[Callback], postpone: Callable[[str, Callable[[], None]], bool], is_coming: Callable[[str], bool]
) -> Iterator[None]:
    """Let lightning's callbacks that save checkpoints, and classes derived from them, save later.

    What they decide, and what of it they remember, is not postponed.

    Args:
        callbacks: all callbacks of a trainer.
        postpone: is given ``save``, ``remove`` or ``link`` with what does it; returns False if that has to be done now.
        is_coming: tells whether a path will be there later.
    """
    changed = [callback for callback in callbacks if isinstance(callback, LightningModelCheckpoint)]
    names = ("_save_checkpoint", "_remove_checkpoint", "_link_checkpoint", "file_exists")
    before = [{name: vars(callback)[name] for name in names if name in vars(callback)} for callback in changed]
    for callback in changed:
        vars(callback).update(_later_methods(callback, postpone, is_coming))
    try:
        yield
    finally:
        for callback, own in zip(changed, before, strict=True):
            for name in names:
                vars(callback).pop(name, None)
            vars(callback).update(own)


def _later_methods(
    callback: LightningModelCheckpoint,
    postpone: Callable[[str, Callable[[], None]], bool],
    is_coming: Callable[[str], bool],
) -> dict[str, Callable[..., Any]]:
    save_now, remove_now = callback._save_checkpoint, callback._remove_checkpoint
    link_now, exists_now = callback._link_checkpoint, callback.file_exists
    # Code of a class of the user's may use the file as soon as lightning's method has returned.
    waits = (
        type(callback).__module__.startswith("lightning.")
        or isinstance(callback, ModelCheckpoint)
        or not any(
            getattr(type(callback), hook) is not getattr(LightningModelCheckpoint, hook)
            for hook in ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
        )
    )

    def save(trainer: Trainer, filepath: str) -> None:
        module = trainer.lightning_module
        if not module.automatic_optimization and hasattr(module, "saved_models"):
            save_now(trainer, filepath)  # lightning has put other weights into the module meanwhile
            return
        later = save_now if waits else _save_again
        if postpone(filepath, functools.partial(later, trainer, filepath)) and waits:
            callback._last_global_step_saved = trainer.global_step
            callback._last_checkpoint_saved = filepath
        else:
            save_now(trainer, filepath)

    def _save_again(trainer: Trainer, filepath: str) -> None:
        if exists_now(filepath, trainer):
            trainer.save_checkpoint(filepath, callback.save_weights_only)

    def remove(trainer: Trainer, filepath: str) -> None:
        if not postpone("", functools.partial(remove_now, trainer, filepath)):
            remove_now(trainer, filepath)

    def link(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if not postpone(linkpath, functools.partial(link_now, trainer, filepath, linkpath)):
            link_now(trainer, filepath, linkpath)

    def exists(filepath: Any, trainer: Trainer) -> bool:
        return is_coming(str(filepath)) or exists_now(filepath, trainer)

    return {"_save_checkpoint": save, "_remove_checkpoint": remove, "_link_checkpoint": link, "file_exists": exists}


def live_attributes(logger: Any) -> frozenset[str]:
    """Return the attributes of a logger that are a connection of this process, and mean nothing in another.

    lightning's WandbLogger opens its run in the caller, where it is pickled, and attaches to it in a worker. The caller
    keeps the run that it has opened, which knows what the worker has logged.
    """
    return frozenset({"_experiment", "_attach_id"}) if isinstance(logger, WandbLogger) else frozenset()


def open_runs(trainer: Trainer) -> None:
    """Open the runs that belong to the caller, and that its workers attach to: those of lightning's WandbLogger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            _ = logger.experiment


def uploads_at_once(logger: Logger, callback: LightningModelCheckpoint) -> bool:
    """Tell whether a logger of lightning uploads each checkpoint of a callback as soon as it is saved."""
    log_model = getattr(logger, "_log_model", False)
    return log_model == "all" or (log_model is True and callback.save_top_k == -1)


def tune_storage() -> str | None:
    """Return the folder, or its URL, that Ray Tune keeps the trial in whose function runs in this process.

    Returns:
        The folder; None if this is no trial that is a function.
    """
    from ray.train._internal.session import get_session

    session = get_session()
    if session is None or session.world_rank is not None or session.storage is None:  # Ray Train has ranks
        return None
    kind, path = session.storage.storage_filesystem.type_name, session.storage.trial_fs_path
    return path if kind == "local" else f"{'gs' if kind == 'gcs' else kind}://{path}"


class CheckpointAwareCLI(LightningCLI):
    """Lightning's command line, which makes the model of a checkpoint with the checkpoint's hyperparameters."""

    def _parse_ckpt_path(self) -> None:
        # A checkpoint that a script has saved, and not this command, does not name its class, and lightning looks for
        # the hyperparameters in LightningModule. Then the config counts; weights that do not fit are an error.
        with suppress(jsonargparse.ArgumentError):
            super()._parse_ckpt_path()


def print_rank_0_plainly() -> None:
    """Let Ray print what the worker of rank 0 prints as it is; the lines of others keep their prefix.

    It lasts until ``ray.shutdown``; further calls change nothing.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    for name, print_lines in dispatcher.handlers:
        if name != "ray_print_logs" or not isinstance(print_lines, functools.partial):  # ours is none
            continue

        def print_plainly(data: dict[str, Any], print_lines: Callable[[Any], None] = print_lines) -> None:
            if data.get("actor_name") != "rank 0":
                print_lines(data)
                return
            print(*data["lines"], sep="\n", file=sys.stderr if data["is_err"] else sys.stdout, flush=True)

        dispatcher.remove_handler(name)
        dispatcher.add_handler(name, print_plainly)


def forget_ray_cluster(address: str) -> None:
    """Take back the note in which `ray start` keeps the address of a cluster for whoever names none.

    Ray itself takes it back with `ray stop`, which ends all clusters of this machine, and not when it is ended by a
    signal. Then whatever connects without an address fails.
    """
    from ray._private import utils

    if utils.read_ray_address() == address:
        Path(utils.get_ray_address_file(None)).unlink(missing_ok=True)


def forget_exit_functions() -> None:
    """Leave what was registered with `atexit`, or to be finalized at the end, to the process that was forked.

    What the libraries of Python itself do at the end is done in this process too.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]


def run_threads_exit_functions() -> None:
    """Tell threads that the process ends, as Python does before it waits for them: those of executors sleep else."""
    for function in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        function()


def run_exit_functions() -> None:
    """Run what has been registered with `atexit`, as Python does when it ends."""
    atexit._run_exitfuncs()
