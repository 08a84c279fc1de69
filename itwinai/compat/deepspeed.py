"""DeepSpeed's engines and ZeRO's optimizers, and Lightning's strategy around them. DeepSpeed is imported when used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch import Tensor, nn
from typing_extensions import override

from itwinai.compat.jsonargparse import unlisted
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:  # which cannot follow a function that makes a class
    UnlistedDeepSpeedStrategy = LightningDeepSpeedStrategy
else:
    UnlistedDeepSpeedStrategy = unlisted(LightningDeepSpeedStrategy)


def leave_out_shared_memory_operator() -> None:
    """Let DeepSpeed do without the operator that it would compile for the CPU when it is first used.

    torch.distributed does the same work. Compiling takes a minute and a compiler, and a worker that is killed during it
    leaves a lock behind at which all later runs of this user would hang.
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
    """Return whether a new attribute of a module was set by a DeepSpeed engine."""
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
    """Return whether a new attribute of a parameter was set by a DeepSpeed engine."""
    return name.startswith("ds_") or name in _ENGINE_PARAMETER_ATTRIBUTES


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def remove_hooks_of_engine(owner: nn.Module | nn.Parameter) -> None:
    """Remove the hooks of a DeepSpeed engine from a module or parameter: they keep the engine and cannot be pickled."""
    for name in _HOOKS if isinstance(owner, nn.Module) else _PARAMETER_HOOKS:
        hooks = getattr(owner, name) or {}
        for key, hook in list(hooks.items()):
            if (getattr(hook, "__module__", None) or "").startswith("deepspeed."):
                del hooks[key]


def remove_manager_of_engine(output: Any) -> None:
    """Remove the manager of a DeepSpeed engine's hooks from the loss that a step returns, which the hooks keep alive.

    The loop clones the loss. Tensors of some classes are cloned with their attributes, and this one cannot be copied.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, Tensor):
        vars(loss).pop("_backward_hook_managers", None)


@contextmanager
def making_engine(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let an engine that is created inside the context accept parameters of any shape, and broadcast none of them.

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
    """Lightning's DeepSpeed strategy, which leaves making engines to a public method."""

    config: dict[str, Any]  # Lightning refuses None before it gets here

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

    @override
    def init_deepspeed(self) -> None:
        # Not Lightning's: that one refuses to clip by value, and warns of hooks that are ignored.
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
        # DeepSpeed divides by it for the throughput that it prints. Lightning makes the training loader once more to
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
    """Let the next backward pass of a DeepSpeed engine begin a new sum of gradients.

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


def is_in_optimizer(parameter: nn.Parameter) -> bool:
    """Return whether the optimizer of an engine has a parameter, so that it has it in full precision."""
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
