"""PyTorch DistributedDataParallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Unpack, override

from itwinai.compat import lightning_launching
from itwinai.compat import torch as compat_torch
from itwinai.errors import CompileStepError, ConfigurationError
from itwinai.interfaces import WorkerSource
from itwinai.launchers.environment import WorkerKind
from itwinai.launchers.reach import check_network, spans_nodes
from itwinai.launchers.worker import leave_group
from itwinai.loops.metric_sync import check_shapes
from itwinai.profiling.step_timer import Communication, StepClock
from itwinai.strategies.backward import ParameterMonitor, refuse_lazy
from itwinai.strategies.base import LaunchedStrategy, LocalProcesses
from itwinai.strategies.gradient_averaging import GradientAverager, unused_error
from itwinai.strategies.options import DDPOptions, check_options

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Compression = Literal["fp16", "bf16", "powersgd"]

_FLAT = {"find_unused_parameters", "gradient_as_bucket_view", "static_graph", "broadcast_buffers", "init_sync"} | {
    "bucket_cap_mb"
}
"""Options of DDP that matter to its reducer only, or are followed without it."""

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
    _is_alone_in_group = False

    def setup_distributed(self) -> None:
        """Form the process group, unless an outer launcher has done so."""
        # Not Lightning's: that one seeds all ranks again, and a distributed run draws other numbers than one process.
        self.set_world_ranks()
        self.init_process_group(self.process_group_backend)
        self.announce()

    @property
    def process_group_backend(self) -> str:
        """What moves the data: by default what suits the device, nccl for CUDA and gloo for the CPU."""
        return self.backend or dist.get_default_backend_for_device(self.root_device)

    def init_process_group(self, backend: str) -> None:
        """Initialize torch.distributed with this worker's ranks.

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
            self._is_alone_in_group = True
            return
        if spans_nodes(environment.world_size()):
            check_network(environment.main_address, environment.main_port, "gloo" in backend)
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        dist.init_process_group(**options)

    def leave_group_of_one(self) -> None:
        """Leave a process group without other workers: a process in a group cannot be forked for the next call."""
        if self._is_alone_in_group:
            self._is_alone_in_group = False
            leave_group()

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all workers, stacked; through them gradients flow back only with ``sync_grads``."""
        if not dist.is_initialized():
            return super().all_gather(tensor, group, sync_grads)
        if group is None or group is dist.group.WORLD:
            check_shapes(self, tensor)
        return super().all_gather(tensor, group, sync_grads) if sync_grads else self.gather_alike(tensor, group)

    def gather_alike(self, tensor: Tensor, group: Any = None) -> Tensor:
        """Return the tensors of all workers, stacked, without a check that they have one shape."""
        # Not Lightning's: that one takes the detour by autograd, which torch deprecates, also for plain numbers.
        tensor = tensor.detach().contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, tensor, group=group)
        return torch.stack(gathered)

    @override
    def describe_backend(self) -> str:
        return self.process_group_backend


class DDPStrategy(TorchDistributedStrategy, lightning_launching.UnlistedDDPStrategy):
    """Train with DistributedDataParallel: every worker has the whole model, gradients are averaged in buckets.

    You can freeze, unfreeze, add and replace parameters between steps: DDP is then wrapped around them again. Two cases
    that DDP cannot average are averaged when the pass has ended: passes of reentrant checkpoints that reach a parameter
    twice, and all backward passes of manual optimization, ``loss.backward()`` included.

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
        launcher: how the workers of this machine are started; see `ItwinaiTrainer`.
        workers: where workers come from; processes of this machine by default.
        check_drift: compare the parameters of all ranks after each epoch. A ``ddp_comm_hook`` turns it off.
        **kwargs: further arguments of Lightning's DDPStrategy and of torch's DistributedDataParallel: see `DDPOptions`.

    Raises:
        ConfigurationError: the name of the compression is unknown.
        UnknownArgumentError: one of the further arguments is unknown.
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
        launcher: WorkerKind = "auto",
        workers: WorkerSource | None = None,
        check_drift: bool = True,
        **kwargs: Unpack[DDPOptions],
    ) -> None:
        check_options(DDPStrategy, kwargs, LightningDDPStrategy.__init__, DistributedDataParallel.__init__)
        if gradient_compression not in (None, *get_args(Compression)):
            names = ", ".join(get_args(Compression))
            raise ConfigurationError(
                f"gradient_compression={gradient_compression!r} is unknown; choose one of {names}."
            )
        if gradient_compression is not None and kwargs.get("ddp_comm_hook") is not None:
            raise ConfigurationError("Both gradient_compression and ddp_comm_hook are set; choose one.")
        self.gradient_compression = gradient_compression
        self.comm_hook, self.comm_state = kwargs.get("ddp_comm_hook"), kwargs.get("ddp_comm_state")
        self.static_graph, self.find_unused_parameters = static_graph, find_unused_parameters
        super().__init__(
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
            **kwargs,
        )
        self.collective_timeout = as_timedelta(timeout)
        self.backend = process_group_backend
        self.worker_source = workers or LocalProcesses(launcher)
        self.check_drift = check_drift and self.comm_hook is None
        self._averager: GradientAverager | None = None
        self._keeps_averager = False
        self._unused: list[str] = []
        self._clock: StepClock | None = None

    @property
    @override
    def is_distributed(self) -> bool:
        return True

    # ---------------------------------------------------------------------------------------------- the model

    @override
    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.lightning_module is not None
            self._watch = ParameterMonitor(self.lightning_module)
            if self._averages_manually:
                self._average_after_backward()

    @override
    def configure_ddp(self) -> None:
        assert self.model is not None
        refuse_lazy(self.model)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            return  # DDP refuses that; something may be unfrozen later
        super().configure_ddp()
        hook, state = self.comm_hook, self.comm_state
        if self.gradient_compression is not None:
            hook, state = _compression_hook(self.gradient_compression)
        elif self.root_device.type == "cuda":
            return  # Lightning has registered the user's hook; it does so on CUDA only
        if hook is not None:
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(state=state, hook=hook)

    @override
    def teardown(self) -> None:
        if self._averager is not None:
            self._averager.remove()
        self._averager = self._clock = None
        self._keeps_averager, self._unused = False, []
        super().teardown()
        self.leave_group_of_one()

    # ------------------------------------------------------------------------------------------- the gradients

    @property
    def _has_hook(self) -> bool:
        """Whether the reducer does more than to average."""
        return self.comm_hook is not None or self.gradient_compression is not None

    @property
    def _averages_manually(self) -> bool:
        """Whether it is the module that runs backward, and the reducer may not hear of it."""
        assert self.lightning_module is not None
        return not self.lightning_module.automatic_optimization and self.comm_hook is None

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._look_at_parameters()
        model = self.model
        if not isinstance(model, DistributedDataParallel):
            return super().training_step(*args, **kwargs)
        exchanges = model.require_backward_grad_sync
        reduces = self._averager is None or self._has_hook
        model.require_backward_grad_sync = exchanges and reduces
        try:
            output = super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if "Expected to have finished reduction in the prior iteration" not in str(error):
                raise
            assert self._watch is not None
            known = self._watch.parameters.items()
            raise self.unused_error([name for name, p in known if p.requires_grad and p.grad is None]) from error
        finally:
            model.require_backward_grad_sync = exchanges
        if not reduces:
            model.require_forward_param_sync = exchanges  # so that buffers follow those of rank 0
        assert self._watch is not None
        self.refuse_parameters_made_in_step(self._watch)
        return output

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        averager = self._averager
        if averager is not None:
            averager.hooks.begin(closure_loss)
            if not self._has_hook:
                return
            averager.hooks.paused = True  # the reducer does it, in its own way
        super().pre_backward(closure_loss)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        averager = self._averager
        if averager is not None:
            averager.hooks.end()
            if not self._has_hook:
                if averager.averaged and not self._averages_manually:
                    self._conclude(averager)
                return
            averager.hooks.paused = False
        super().post_backward(closure_loss)

    @contextmanager
    @override
    def block_backward_sync(self) -> Iterator[None]:
        averager = self._averager
        if averager is None:
            with super().block_backward_sync():
                yield
            return
        averager.hooks.paused = True
        try:
            with super().block_backward_sync():
                yield
        finally:
            averager.hooks.paused = False

    def _average_after_backward(self) -> None:
        assert self._watch is not None
        if self._averager is not None:
            self._averager.remove()
        self._averager = GradientAverager(self._watch.parameters, self.root_device, self.batch_weight)
        self._averager.clock = self._clock

    def _conclude(self, averager: GradientAverager) -> None:
        """Decide from a step that went without the reducer whether it can do the next ones."""
        self._unused = [] if self.find_unused_parameters else averager.unused
        if averager.repeated or averager.nested and self.find_unused_parameters:
            if not self._keeps_averager:
                rank_zero_info(
                    "itwinai: reentrant activation checkpointing runs backward inside backward, where DDP would miss "
                    "gradients. itwinai averages after backward instead; use_reentrant=False lets DDP overlap the two "
                    "again."
                )
            self._keeps_averager = True
        if not self._keeps_averager:
            averager.remove()
            self._averager = None

    def unused_error(self, names: list[str]) -> Exception:
        """Return the error for parameters that got no gradient."""
        return unused_error(names, "'ddp_find_unused_parameters_true' or DDPStrategy(find_unused_parameters=True)")

    def _look_at_parameters(self) -> None:
        """Follow parameters that are added, replaced, frozen or unfrozen."""
        if self._unused:
            raise self.unused_error(self._unused)
        assert self._watch is not None
        change = self.check_parameter_changes(self._watch)
        if change is None:
            return
        if change:
            self._wrap_again(new=bool(change.new))
        # The first step of an epoch shows what the reducer has to cope with, and goes without it.
        if self._averages_manually or not (self.static_graph or self._has_hook):
            self._average_after_backward()

    def _wrap_again(self, new: bool) -> None:
        """Make another reducer, for the parameters that are trained now.

        Args:
            new: whether there are parameters that rank 0 has to share first.
        """
        shared = False
        if isinstance(self.model, DistributedDataParallel):
            compat_torch.end_reducer(self.model)
            shared = not new
        self.model = self.lightning_module
        with lightning_launching.ddp_options(self, {"init_sync": False} if shared else {}):
            self.configure_ddp()
        if self._clock is not None:
            self.time_communication(self._clock)

    # ------------------------------------------------------------------------------- steps without the reducer

    def check_flat_average(self) -> None:
        """Check that the reducer does nothing but to average.

        Raises:
            CompileStepError: it does more.
        """
        more = {
            "a ddp_comm_hook": self.comm_hook is not None,
            "gradient_compression": self.gradient_compression is not None,
            "static_graph=True": self.static_graph,
            "options of DDP that a graph does not know": bool(lightning_launching.ddp_option_names(self) - _FLAT),
            "parameters that DDP is to ignore": hasattr(self.lightning_module, "_ddp_params_and_buffers_to_ignore"),
        }
        for option, given in more.items():
            if given:
                raise CompileStepError(
                    f"the strategy {self.strategy_name} is used with {option}, for which gradients have to go through "
                    "DDP's reducer",
                    "Leave it out.",
                )

    def begin_flat_step(self, exchanges: bool) -> None:
        """Do what comes before a forward pass that runs without DDP.

        Args:
            exchanges: whether gradients are averaged in this step; otherwise they accumulate.
        """
        self._look_at_parameters()
        if isinstance(self.model, DistributedDataParallel):
            compat_torch.share_buffers(self.model, exchanges)

    def average_flat(self, tensor: Tensor, name: str) -> None:
        """Replace a tensor by its average over all workers: divided before the sum, as DDP does.

        Args:
            tensor: the same shape on all workers.
            name: what it is; gloo and NCCL go by the order.
        """
        began = perf_counter_ns()
        dist.all_reduce(tensor.mul_(1.0 / self.world_size))
        if self._clock is not None:
            waited = perf_counter_ns() - began
            self._clock.communicated(waited, waited)

    @override
    def time_communication(self, clock: StepClock) -> None:
        self._clock = clock
        if isinstance(self.model, DistributedDataParallel):
            compat_torch.sample_exchanges(self.model, clock.every)
            clock.covers_gradients = True
        if self._averager is not None:
            self._averager.clock = clock

    @override
    def exchange_time(self) -> Communication | None:
        if not isinstance(self.model, DistributedDataParallel):
            return None
        total, overlapped, computing = compat_torch.exchange_time(self.model)
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
