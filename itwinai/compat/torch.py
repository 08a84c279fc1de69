"""Private names of torch: DDP's timings and hooks, backward passes, tensors, print options, stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def sample_exchanges(model: DistributedDataParallel, every: int) -> None:
    """Let DDP measure, in one of n steps, how long its exchange of gradients takes."""
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


def end_reducer(model: DistributedDataParallel) -> None:
    """Take the hooks of DDP's reducer off the parameters, so that the module can be wrapped again."""
    del model.logger  # refers to the reducer, whose hooks go when it does
    del model.reducer


def share_buffers(model: DistributedDataParallel, exchanges: bool) -> None:
    """Do for the buffers what a forward pass does: those of rank 0 go to all, once per exchange of gradients.

    Args:
        model: whose forward pass runs without it.
        exchanges: whether gradients are exchanged after this pass.
    """
    if model.will_sync_module_buffers():
        model._sync_buffers()
    model.require_forward_param_sync = exchanges


def backward_pass() -> int:
    """Return a number of the backward pass that runs in this thread, the innermost of several; -1 if none does."""
    return int(torch._C._current_graph_task_id())


def after_backward_pass(function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that runs in this thread, before ``backward`` returns."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def is_profiling() -> bool:
    """Return whether a profiler of torch is recording in this process."""
    return bool(torch.autograd._profiler_enabled())


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors as one vector, as torch's ``get_total_norm``, in a third of its time.

    That one sorts them by device and type first, which for most modules are the same.
    """
    device, dtype = tensors[0].device, tensors[0].dtype
    if all(type(t) is Tensor and t.device == device and t.dtype == dtype and not t.is_sparse for t in tensors):
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return torch.nn.utils.get_total_norm([t.coalesce().values() if t.is_sparse else t for t in tensors])


def validates_distributions() -> bool:
    """Return whether torch's distributions validate their arguments by default."""
    return torch.distributions.Distribution._validate_args


def print_options() -> dict[str, Any]:
    """Return how torch prints tensors."""
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def set_print_options(options: dict[str, Any]) -> None:
    """Let torch print tensors as another process does."""
    vars(torch._tensor_str.PRINT_OPTS).update(options)


def version_of(tensor: Tensor) -> int | None:
    """Return the number of changes in place that a tensor has seen; None where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is what ``torch.compile(module)`` returns."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Return whether ``module.compile()`` was called."""
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


def default_store() -> dist.Store:
    """Return a store of the default process group, for use in a thread of its own."""
    return dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]


def plain_tensor(value: Tensor) -> Tensor:
    """Return a tensor without the class that someone has derived of torch's: the same memory, the same graph.

    Such a class may refuse what is done with a number here, or cannot be loaded again from a checkpoint. One that holds
    its values elsewhere stays as it is.
    """
    if type(value) is Tensor or type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)
