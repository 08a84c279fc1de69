"""The arguments that strategies pass on to Lightning, torch and DeepSpeed, for editors and for messages.

They are declared as types for ``**kwargs``: editors complete them and type checkers refuse others, and no constructor
has to repeat them. ``tests/strategies/test_options.py`` compares them with the installed libraries.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, TypeVar, cast

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision

from itwinai.errors import UnknownArgumentError, did_you_mean

Function = TypeVar("Function", bound=Callable[..., Any])


class ParallelOptions(TypedDict, total=False):
    """What every parallel strategy of Lightning accepts; the trainer sets all of it from its own arguments."""

    accelerator: Accelerator | None
    parallel_devices: list[torch.device] | None
    cluster_environment: ClusterEnvironment | None
    checkpoint_io: CheckpointIO | None
    precision_plugin: Precision | None


class DDPOptions(ParallelOptions, total=False):
    """What Lightning's DDPStrategy and torch's DistributedDataParallel accept; see their documentation."""

    ddp_comm_state: object | None
    ddp_comm_hook: Callable[..., Any] | None
    ddp_comm_wrapper: Callable[..., Any] | None
    model_averaging_period: int | None
    broadcast_buffers: bool
    init_sync: bool
    bucket_cap_mb: int | None
    delay_all_reduce_named_params: list[tuple[str, torch.nn.Parameter]] | None
    param_to_hook_all_reduce: torch.nn.Parameter | None
    skip_all_reduce_unused_params: bool


class DeepSpeedOptions(TypedDict, total=False):
    """What Lightning's DeepSpeedStrategy accepts besides; see its documentation. ``config`` overrides most of them."""

    accelerator: Accelerator | None
    parallel_devices: list[torch.device] | None
    cluster_environment: ClusterEnvironment | None
    precision_plugin: Precision | None
    zero_optimization: bool
    remote_device: str | None
    offload_params_device: str
    offload_optimizer_device: str
    nvme_path: str
    params_buffer_count: int
    params_buffer_size: int
    max_in_cpu: int
    optimizer_buffer_count: int
    block_size: int
    queue_depth: int
    single_submit: bool
    overlap_events: bool
    thread_count: int
    pin_memory: bool
    sub_group_size: int
    contiguous_gradients: bool
    overlap_comm: bool
    allgather_partitions: bool
    reduce_scatter: bool
    allgather_bucket_size: int
    reduce_bucket_size: int
    zero_allow_untested_optimizer: bool
    logging_batch_size_per_gpu: str | int
    logging_level: int
    loss_scale: float
    initial_scale_power: int
    loss_scale_window: int
    hysteresis: int
    min_loss_scale: int
    partition_activations: bool
    cpu_checkpointing: bool
    contiguous_memory_optimization: bool
    synchronize_checkpoint_boundary: bool
    load_full_weights: bool
    process_group_backend: str | None
    exclude_frozen_parameters: bool


def check_options(strategy: type, options: Iterable[str], *taken_by: Callable[..., Any]) -> None:
    """Raise an error for the first argument that nothing accepts: torch's DDP complains when the run has begun.

    Args:
        strategy: the class that was given them.
        options: names of what has come as ``**kwargs``.
        *taken_by: what they are passed on to; its signature counts, so that new releases may have new arguments.

    Raises:
        UnknownArgumentError: an argument is unknown; the message suggests the nearest one.
    """
    names = {
        name
        for function in (strategy.__init__, *taken_by)  # type: ignore[misc]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    } - {"self", "module"}
    for name in options:
        if name not in names:
            raise UnknownArgumentError(
                f"{strategy.__name__} has no argument '{name}'.{did_you_mean(name, sorted(names))} "
                f"help(itwinai.strategies.{strategy.__name__}) lists all.",
                argument=name,
            )


def refuses_unknown(init: Function) -> Function:
    """Wrap the constructor of a strategy that passes nothing on, so that an unknown argument is an error of ours."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        check_options(type(self), kwargs)
        init(self, *args, **kwargs)

    return cast(Function, wrapped)
