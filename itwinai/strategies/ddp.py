"""PyTorch DistributedDataParallel."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from itwinai import compat
from itwinai.errors import ConfigurationError
from itwinai.loops.exchange import check_shapes
from itwinai.measure.steps import Communication, StepClock
from itwinai.strategies.base import LaunchedStrategy, LocalProcesses, WorkerSource

Compression = Literal["fp16", "bf16", "powersgd"]

# PyTorch's own default for gloo, and three times its default for NCCL: the first batch of a large run may be slow.
DEFAULT_TIMEOUT = 1800.0


class TorchDistributedStrategy(LaunchedStrategy):
    """Mixin of the strategies whose workers form a torch.distributed process group.

    Attributes:
        backend: ``gloo``, ``nccl`` or another that torch knows; None picks it by the device.
        collective_timeout: after which a collective operation that some worker has not joined is an error.
    """

    backend: str | None = None
    collective_timeout: timedelta

    def setup_distributed(self) -> None:
        """Form the process group, unless an outer launcher has done so."""
        # Not lightning's: that one seeds all ranks anew, and a distributed run draws other numbers than one process.
        self.set_world_ranks()
        self.init_process_group(self.process_group_backend)
        self.announce()

    @property
    def process_group_backend(self) -> str:
        """What moves the data: by default what suits the device, nccl for CUDA and gloo for the CPU."""
        return self.backend or dist.get_default_backend_for_device(self.root_device)

    def init_process_group(self, backend: str) -> None:
        """Initialise torch.distributed with this worker's place.

        Args:
            backend: ``gloo``, ``nccl`` or another that torch knows.
        """
        if dist.is_initialized():
            return
        environment = self.cluster_environment
        assert environment is not None
        device = self.root_device
        options: dict[str, Any] = {
            "backend": backend,
            "rank": environment.global_rank(),
            "world_size": environment.world_size(),
            "timeout": self.collective_timeout,
            "device_id": device if device.type == "cuda" else None,
        }
        if environment.world_size() == 1:
            dist.init_process_group(store=dist.HashStore(), **options)
            return
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        dist.init_process_group(**options)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all workers, stacked; through them gradients flow back only with ``sync_grads``."""
        if not dist.is_initialized():
            return super().all_gather(tensor, group, sync_grads)
        if group is None or group is dist.group.WORLD:
            check_shapes(self, tensor)
        return super().all_gather(tensor, group, sync_grads) if sync_grads else self.gather_alike(tensor, group)

    def gather_alike(self, tensor: Tensor, group: Any = None) -> Tensor:
        """Return the tensors of all workers, stacked, without a check that they have one shape."""
        # Not lightning's: that one takes the detour by autograd, which torch deprecates, also for plain numbers.
        tensor = tensor.detach().contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, tensor, group=group)
        return torch.stack(gathered)

    def describe_backend(self) -> str:
        return self.process_group_backend


class DDPStrategy(TorchDistributedStrategy, compat.UnlistedDDPStrategy):
    """Train with DistributedDataParallel: every worker has the whole model, gradients are averaged in buckets.

    Args:
        gradient_as_bucket_view: let gradients live in the communication buckets, which saves one copy of them in
            memory and in time. On by default; it forbids ``detach_()`` on gradients.
        static_graph: promise that every step uses the same parameters in the same order; DDP then overlaps better
            and allows repeated activation checkpointing.
        find_unused_parameters: look after each forward pass for parameters that got no part in the loss. Costs a walk
            over the graph in each step; without it such parameters are an error.
        gradient_compression: exchange gradients as ``"fp16"`` or ``"bf16"``, or low-rank by ``"powersgd"``
            (Vogels et al., 2019, arXiv:1905.13727; rank 1, after 10 plain steps). Changes the numbers.
        timeout: seconds after which a collective operation that some worker has not joined is an error.
        process_group_backend: ``"gloo"`` or ``"nccl"``; picked by the device by default.
        workers: where workers come from; processes of this machine by default.
        **kwargs: further arguments of lightning's DDPStrategy and of torch's DistributedDataParallel.

    Raises:
        ConfigurationError: the name of the compression is unknown.
    """

    strategy_name = "ddp"

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        find_unused_parameters: bool = False,
        gradient_compression: Compression | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        process_group_backend: str | None = None,
        workers: WorkerSource | None = None,
        **kwargs: Any,
    ) -> None:
        if gradient_compression not in (None, *get_args(Compression)):
            names = ", ".join(get_args(Compression))
            raise ConfigurationError(
                f"gradient_compression={gradient_compression!r} is unknown; choose one of {names}."
            )
        if gradient_compression is not None and kwargs.get("ddp_comm_hook") is not None:
            raise ConfigurationError("Both gradient_compression and ddp_comm_hook are set; choose one.")
        self.gradient_compression = gradient_compression
        self.comm_hook, self.comm_state = kwargs.get("ddp_comm_hook"), kwargs.get("ddp_comm_state")
        super().__init__(
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
            **kwargs,
        )
        self.collective_timeout = as_timedelta(timeout)
        self.backend = process_group_backend
        self.worker_source = workers or LocalProcesses()

    @property
    def is_distributed(self) -> bool:
        return True

    def configure_ddp(self) -> None:
        super().configure_ddp()
        hook, state = self.comm_hook, self.comm_state
        if self.gradient_compression is not None:
            hook, state = _compression_hook(self.gradient_compression)
        elif self.root_device.type == "cuda":
            return  # lightning has registered the user's hook; it does so on CUDA only
        if hook is not None:
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(state=state, hook=hook)

    def time_communication(self, clock: StepClock) -> None:
        if isinstance(self.model, DistributedDataParallel):
            compat.sample_exchanges(self.model, clock.every)
            clock.covers_gradients = True

    def exchange_time(self) -> Communication | None:
        if not isinstance(self.model, DistributedDataParallel):
            return None
        total, overlapped, computing = compat.exchange_time(self.model)
        return Communication(total, overlapped, computing) if total else None


def as_timedelta(seconds: float | timedelta) -> timedelta:
    """Return a time span that is given as a plain number of seconds, or as a timedelta."""
    return seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)


def _compression_hook(name: Compression) -> tuple[Callable[..., Any], object | None]:
    """Return the communication hook of a compression, and its state; the process group has to exist."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if name == "powersgd":
        state = powerSGD_hook.PowerSGDState(process_group=None, start_powerSGD_iter=10)
        return powerSGD_hook.powerSGD_hook, state
    return (default_hooks.fp16_compress_hook if name == "fp16" else compress_to_bf16), None


def compress_to_bf16(group, bucket):  # type: ignore[no-untyped-def]
    """Exchange a bucket of gradients in bfloat16.

    DDP refuses torch's own hook, by its name, unless NCCL is there; gloo can do it as well. It also refuses
    annotations that are strings, as all in this file are.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    return default_hooks.bf16_compress_hook(group, bucket)
