"""Horovod: gradients are averaged by Horovod's own engine, over Gloo, MPI or NCCL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack, override

from itwinai.errors import CompileStepError, ConfigurationError, require
from itwinai.interfaces import WorkerSource
from itwinai.launchers.environment import WorkerKind
from itwinai.launchers.local import free_port
from itwinai.loops.metric_sync import check_shapes
from itwinai.profiling.step_timer import StepClock
from itwinai.strategies.backward import BackwardHooks, ParameterMonitor, can_require_grad, refuse_lazy
from itwinai.strategies.base import LaunchedStrategy, LocalProcesses
from itwinai.strategies.ddp import DEFAULT_TIMEOUT, as_timedelta
from itwinai.strategies.gradient_averaging import unused_error
from itwinai.strategies.options import ParallelOptions, check_options
from itwinai.strategies.registry import INSTALL

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Compression = Literal["fp16"]
Operation = Literal["Average", "Adasum"]
REMEDY = "HorovodStrategy(find_unused_parameters=True)"


class HorovodCollectives(ParallelStrategy):
    """The collective operations of a parallel strategy, with the shapes and semantics that they have under DDP."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait until all workers have come here."""
        import horovod.torch as hvd

        if hvd.is_initialized():
            hvd.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the object that the worker of rank ``src`` has."""
        import horovod.torch as hvd

        # By default the type of the object names the operation, and types differ where only one worker has a value.
        return hvd.broadcast_object(obj, root_rank=src, name="itwinai.broadcast") if hvd.is_initialized() else obj

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce a tensor over all workers, in place as under DDP; return other objects as they are.

        Args:
            tensor: the same shape on all workers.
            group: all workers; Horovod supports no other.
            reduce_op: ``"mean"``, ``"sum"``, ``"min"``, ``"max"``, ``"product"``, or the ReduceOp of torch.
        """
        import horovod.torch as hvd

        if not isinstance(tensor, Tensor) or not hvd.is_initialized():
            return tensor
        _refuse_group(group)
        name = str(reduce_op).rpartition(".")[2].lower()
        operations = {
            "mean": hvd.Sum,
            "avg": hvd.Sum,
            "sum": hvd.Sum,
            "min": hvd.Min,
            "max": hvd.Max,
            "product": hvd.Product,
        }
        if name not in operations:
            raise ConfigurationError(f"reduce_op={reduce_op!r} is unknown; choose one of {', '.join(operations)}.")
        if tensor.is_complex() and operations[name] == hvd.Sum:
            self.reduce(torch.view_as_real(tensor.detach()), reduce_op=reduce_op)
            return tensor
        reduced = hvd.allreduce(_known_to_horovod(tensor.detach()), op=operations[name])
        if name in ("mean", "avg"):
            reduced = reduced / self.world_size
        with torch.no_grad():
            return tensor.copy_(reduced)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Stack the tensors of all workers along a new first dimension.

        Args:
            tensor: the same shape on all workers.
            group: all workers; Horovod supports no other.
            sync_grads: let gradients flow back to the workers that the tensors came from.
        """
        import horovod.torch as hvd

        if not hvd.is_initialized():
            return tensor
        _refuse_group(group)
        check_shapes(self, tensor)
        return _AllGather.apply(tensor) if sync_grads else _stack(tensor)

    def gather_alike(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all workers, stacked, without a check that they have one shape."""
        return _stack(tensor)


class _AllGather(torch.autograd.Function):
    """An all-gather whose gradient is the sum over workers, as under DDP; Horovod's own takes the mean."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _stack(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        import horovod.torch as hvd

        (gradient,) = gradients
        return hvd.allreduce(_known_to_horovod(gradient), op=hvd.Sum)[hvd.rank()].to(gradient.dtype)


def _stack(tensor: Tensor) -> Tensor:
    import horovod.torch as hvd

    if tensor.is_complex():
        return torch.view_as_complex(_stack(torch.view_as_real(tensor.detach().resolve_conj())))
    with torch.inference_mode(False):  # Horovod resizes its output in a thread that is not in inference mode
        # Horovod concatenates along the first dimension.
        rows = _known_to_horovod(tensor.detach()).contiguous().unsqueeze(0)
        return hvd.allgather(rows).to(tensor.dtype)


class HorovodStrategy(LaunchedStrategy, HorovodCollectives):
    """Train with Horovod.

    The all-reduce of a gradient starts when backward has finished with it, and all are awaited at the end of backward,
    so that hooks, closures, clipping and gradient accumulation see averaged gradients. The learning rate is not scaled.
    The workers also form a group of torch.distributed, for code that reads rank and world size there.

    Args:
        compression: exchange gradients as ``"fp16"``; changes the numbers.
        op: ``"Average"``, or ``"Adasum"`` (Maleki et al., 2020, arXiv:2006.02924), which combines the workers' updates
            instead of their gradients. Adasum needs a Horovod that was built with MPI.
        gradient_predivide_factor: divide gradients by this before they are summed and by the rest afterwards, against
            overflow in fp16; 1 divides afterwards only.
        find_unused_parameters: expect that some parameters get no gradient in some steps. They then count as zero on
            workers that have none, and stay untouched where no worker has one. Costs a small exchange per step;
            without it such parameters are an error, as under DDP.
        launcher: how the workers of this machine are started; see `ItwinaiTrainer`.
        workers: where workers come from; processes of this machine by default.
        check_drift: compare the parameters of all ranks after each epoch; always off for Adasum.
        **kwargs: further arguments of Lightning's ParallelStrategy: see `ParallelOptions`.

    Raises:
        ConfigurationError: an option is unknown.
        UnknownArgumentError: one of the further arguments is unknown.
        MissingPackageError: Horovod is not installed.
    """

    strategy_name = "horovod"
    is_distributed = True  # Lightning would inject no sampler and ignore sync_dist otherwise

    def __init__(
        self,
        *,
        compression: Compression | None = None,
        op: Operation = "Average",
        gradient_predivide_factor: float = 1.0,
        find_unused_parameters: bool = False,
        launcher: WorkerKind = "auto",
        workers: WorkerSource | None = None,
        check_drift: bool = True,
        **kwargs: Unpack[ParallelOptions],
    ) -> None:
        check_options(HorovodStrategy, kwargs, ParallelStrategy.__init__)
        require("horovod", f"Build it with `{INSTALL['horovod']}`.", "The strategy 'horovod'")
        if compression not in (None, "fp16"):
            raise ConfigurationError(f"compression={compression!r} is unknown; choose 'fp16' or None.")
        if op not in ("Average", "Adasum"):
            raise ConfigurationError(f"op={op!r} is unknown; choose 'Average' or 'Adasum'.")
        if op == "Adasum" and gradient_predivide_factor != 1.0:
            raise ConfigurationError("gradient_predivide_factor is for op='Average'; Adasum does not average.")
        super().__init__(**kwargs)
        self.worker_source = workers or LocalProcesses(launcher)
        self.compression = compression
        self.op = op
        self.gradient_predivide_factor = gradient_predivide_factor
        self.find_unused_parameters = find_unused_parameters
        self.check_drift = check_drift and op == "Average"
        self._synchronizer: GradientSynchronizer | None = None
        self._store: dist.TCPStore | None = None
        self._joined = False
        self._clock: StepClock | None = None

    # ---------------------------------------------------------------------------------------------- the group

    @override
    def setup_environment(self) -> None:
        from itwinai.launchers.horovod import initialize

        assert self.cluster_environment is not None
        self.set_world_ranks()
        super().setup_environment()  # selects this worker's GPU, which has to come before Horovod touches any
        initialize(self.cluster_environment)
        self._join_torch_group()
        self.announce()

    def _join_torch_group(self) -> None:
        """Form the group by which code that knows torch.distributed only, as metrics do, finds the other workers."""
        if dist.is_initialized():
            return
        store: dist.Store = dist.HashStore() if self.world_size == 1 else self._common_store()
        on_gpu = self.root_device.type == "cuda" and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=as_timedelta(DEFAULT_TIMEOUT),
        )
        self._joined = True

    def _common_store(self) -> dist.TCPStore:
        """Return a store that rank 0 serves, until the next is asked for; Horovod itself has none."""
        assert self.cluster_environment is not None
        address = self.cluster_environment.main_address
        if self.is_global_zero:
            self._store = dist.TCPStore(address, free_port(), is_master=True, wait_for_workers=False)
        port = self.broadcast(self._store and self._store.port)
        return self._store or dist.TCPStore(address, port, is_master=False)

    @override
    def gather_objects(self, value: Any) -> list[Any]:
        import horovod.torch as hvd

        if not hvd.is_initialized():  # on the caller, whose workers have ended
            return [value]
        with torch.inference_mode(False):  # Horovod changes in place what it has made
            gathered: list[Any] = hvd.allgather_object(value, name="itwinai.gather")
        return gathered

    @override
    def describe_backend(self) -> str:
        import horovod.torch as hvd

        return (
            "nccl" if self.root_device.type == "cuda" and hvd.nccl_built() else "mpi" if hvd.mpi_enabled() else "gloo"
        )

    @override
    def setup(self, trainer: Trainer) -> None:
        import horovod.torch as hvd

        assert self.accelerator is not None and self.model is not None
        if self._layer_sync is not None:
            raise ConfigurationError(
                "sync_batchnorm=True exchanges statistics during backward through torch.distributed, in between the "
                "gradients of the strategy 'horovod', and each could wait for the other. Put "
                "horovod.torch.SyncBatchNorm into the module, or use the strategy 'ddp'."
            )
        if self.op == "Adasum" and not hvd.mpi_built():
            raise ConfigurationError(
                "op='Adasum' needs a Horovod with MPI: HOROVOD_WITH_MPI=1 itwinai install horovod --force"
            )
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        refuse_lazy(self.model)
        # Parameters, and buffers outside the state dict too: workers may have drawn different initial weights.
        _broadcast([*self.model.parameters(), *self.model.buffers()])
        if trainer.training:
            self.setup_optimizers(trainer)
            self.setup_precision_plugin()
            self._watch = ParameterMonitor(self.model)
            self._average(self._watch)
        else:
            self.setup_precision_plugin()

    def _average(self, watch: ParameterMonitor) -> None:
        """Let the gradients of all parameters that there are now be averaged."""
        assert self.lightning_module is not None
        if self._synchronizer is not None:
            self._synchronizer.remove()
        if self.op == "Average":
            # In manual optimization it is usual that a pass reaches some parameters only.
            partial = self.find_unused_parameters or not self.lightning_module.automatic_optimization
            self._synchronizer = GradientSynchronizer(
                watch.parameters, self.compression, self.gradient_predivide_factor, partial, self.batch_weight
            )
            self._synchronizer.clock = self._clock

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    @override
    def teardown(self) -> None:
        self.collect_final_state()
        if self._synchronizer is not None:
            self._synchronizer.remove()
            self._synchronizer = None
        self._clock = None
        super().teardown()
        if self._joined and dist.is_initialized():
            dist.destroy_process_group()
        self._joined = False

    # ------------------------------------------------------------------------------------------------- steps

    @override
    def time_communication(self, clock: StepClock) -> None:
        self._clock = clock
        if self._synchronizer is not None:
            self._synchronizer.clock = clock
        clock.covers_gradients = True

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        watch = self._begin_step()
        output = super().training_step(*args, **kwargs)
        self.refuse_parameters_made_in_step(watch)
        return output

    def _begin_step(self) -> ParameterMonitor:
        watch = self._watch
        assert watch is not None
        change = self.check_parameter_changes(watch)
        if change is not None and (change.new or change.gone):
            _broadcast([watch.parameters[name] for name in change.new])
            self._average(watch)
        began = perf_counter_ns()
        self._share_buffers()  # as DDP does: running statistics are rank 0's
        self._waited_since(began)
        return watch

    def check_flat_average(self) -> None:
        """Check that gradients are averaged.

        Raises:
            CompileStepError: it is the updates that are combined.
        """
        if self.op != "Average":
            raise CompileStepError(f"op={self.op!r} combines updates instead of gradients", "Choose op='Average'.")

    def begin_flat_step(self, exchanges: bool) -> None:
        """Do what comes before a forward pass.

        Args:
            exchanges: whether gradients are averaged in this step; buffers are shared in each.
        """
        self._begin_step()

    def average_flat(self, tensor: Tensor, name: str) -> None:
        """Replace a tensor by its average over all workers.

        Args:
            tensor: the same shape on all workers.
            name: by which Horovod finds what belongs together.
        """
        assert self._synchronizer is not None
        began = perf_counter_ns()
        self._synchronizer.start_average(tensor, name)()
        self._waited_since(began)

    def unused_error(self, names: list[str]) -> Exception:
        """Return the error for parameters that got no gradient."""
        return unused_error(names, REMEDY)

    @override
    def on_validation_start(self) -> None:
        self._share_buffers()
        super().on_validation_start()

    def _share_buffers(self) -> None:
        if self._watch is not None:  # those that there are now: modules may assign others
            _broadcast(list(self._watch.module.buffers()))

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        if self._synchronizer is not None:
            self._synchronizer.hooks.begin(closure_loss)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if self._synchronizer is not None:
            self._synchronizer.hooks.end()

    @contextmanager
    @override
    def block_backward_sync(self) -> Iterator[None]:
        if self._synchronizer is None:
            yield
            return
        hooks = self._synchronizer.hooks
        hooks.paused = True
        try:
            yield
        finally:
            hooks.paused = False

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        if self.op != "Adasum":
            return super().optimizer_step(optimizer, closure, *args, **kwargs)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        before = [parameter.detach().clone() for parameter in parameters]
        output = super().optimizer_step(optimizer, closure, *args, **kwargs)
        began = perf_counter_ns()
        _combine_updates(parameters, before)
        self._waited_since(began)
        return output

    def _waited_since(self, began: int) -> None:
        if self._clock is not None:
            waited = perf_counter_ns() - began
            self._clock.communicated(waited, waited)


class GradientSynchronizer:
    """Averages gradients over all workers while backward runs.

    Args:
        parameters: by name; also those that are frozen now, and may be unfrozen.
        compression: ``"fp16"`` or None.
        predivide_factor: see `HorovodStrategy`.
        partial: expect that a pass may reach some parameters only, on some workers only.
        weight: of gradients of passes that the strategy does not run.

    Attributes:
        hooks: what follows the backward passes.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        compression: str | None,
        predivide_factor: float,
        partial: bool,
        weight: Callable[[], float],
    ) -> None:
        import horovod.torch as hvd

        self.hvd = hvd
        self.compression = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
        self.predivide_factor = predivide_factor
        self.partial = partial
        self.parameters = {name: parameter for name, parameter in parameters.items() if can_require_grad(parameter)}
        self.clock: StepClock | None = None
        self._began = 0
        self._pending: dict[str, Callable[[], None]] = {}
        self.hooks = BackwardHooks(self.parameters, self._finish, weight, before=self._wait_for)
        frozen = [parameter for parameter in self.parameters.values() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._starter(name))
            for name, parameter in self.parameters.items()
        ]
        for parameter in frozen:
            parameter.requires_grad_(False)

    def _starter(self, name: str) -> Callable[[Tensor], None]:
        def start(parameter: Tensor) -> None:
            if not self.hooks.paused:
                if not self._pending:
                    self._began = perf_counter_ns()
                self._pending[name] = self._all_reduce(name, parameter)

        return start

    def _wait_for(self, name: str) -> None:
        """Let a gradient that is being averaged arrive before another pass adds to it."""
        if name in self._pending:
            self._pending.pop(name)()
            self._pending[name] = _nothing

    def _all_reduce(self, name: str, parameter: Tensor) -> Callable[[], None]:
        """Start averaging a gradient, and return what waits for the average and stores it."""
        hvd, gradient = self.hvd, parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            finish = hvd.sparse_allreduce_async(gradient, name=f"gradient.{name}", op=hvd.Average)

            def store_sparse() -> None:
                parameter.grad = finish()

            return store_sparse
        if not gradient.numel():
            return _nothing
        plain = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        return self.start_average(plain, f"gradient.{name}")

    def start_average(self, plain: Tensor, name: str) -> Callable[[], None]:
        """Start averaging a tensor in place, and return what waits for the average.

        Args:
            plain: neither sparse nor complex.
            name: by which Horovod finds what belongs together.
        """
        hvd = self.hvd
        compressed, context = self.compression.compress(_known_to_horovod(plain.contiguous()))
        # The engine divides by the number of workers itself, after the sum.
        handle = hvd.allreduce_async_(
            compressed,
            name=name,
            op=hvd.Average,
            prescale_factor=1.0 / self.predivide_factor,
            postscale_factor=self.predivide_factor,
        )

        def store() -> None:
            average = self.compression.decompress(hvd.synchronize(handle), context)
            if average is not plain:
                plain.copy_(average)

        return store

    @torch.no_grad()
    def _finish(self) -> None:
        """Wait until all gradients of this pass are averaged.

        Raises:
            UnusedParametersError: a parameter got no gradient, and that is not expected.
        """
        for name, parameter in self.parameters.items():  # what has only got a gradient while they accumulated
            if name in self.hooks.reached and name not in self._pending and parameter.grad is not None:
                self._pending[name] = self._all_reduce(name, parameter)
        unused = [name for name, p in self.parameters.items() if p.requires_grad and name not in self._pending]
        if self.partial:
            self._complete(unused)
        elif unused:
            raise unused_error(unused, REMEDY)
        waiting = perf_counter_ns()
        for store in self._pending.values():
            store()
        self._pending.clear()
        if self.clock is not None:
            now = perf_counter_ns()
            self.clock.communicated(exposed=now - waiting, total=now - self._began)

    def _complete(self, unused: list[str]) -> None:
        """Contribute zeros for parameters that other workers have a gradient for."""
        names = list(self.parameters)
        used = torch.tensor([name in self._pending for name in names], dtype=torch.int32)
        used = self.hvd.allreduce(used, op=self.hvd.Max, name="used parameters")
        for name, used_somewhere in zip(names, used.tolist(), strict=True):
            if name in unused and used_somewhere:
                parameter = self.parameters[name]
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self._pending[name] = self._all_reduce(name, parameter)

    def remove(self) -> None:
        """Remove the hooks from the parameters."""
        self.hooks.remove()
        for handle in self._handles:
            handle.remove()


def _nothing() -> None:
    pass


def _broadcast(tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of rank 0."""
    import horovod.torch as hvd

    if hvd.size() == 1:
        return
    started = []
    with torch.no_grad():
        for index, tensor in enumerate(tensors):
            if tensor.numel():
                real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
                dense = real.contiguous()
                handle = hvd.broadcast_async_(_bits(dense), root_rank=0, name=f"tensor.{index}")
                started.append((real, dense, handle))
        for real, dense, handle in started:
            hvd.synchronize(handle)
            if dense.data_ptr() != real.data_ptr():
                real.copy_(dense)


def _known_to_horovod(tensor: Tensor) -> Tensor:
    """Return a tensor in a type that Horovod computes with, and that holds all values of its own."""
    wider = {torch.bfloat16: torch.float32} | dict.fromkeys(
        (torch.uint8, torch.int8, torch.int16, torch.bool), torch.int32
    )
    return tensor.to(wider.get(tensor.dtype, tensor.dtype))


def _bits(tensor: Tensor) -> Tensor:
    """Return the same memory in a type that Horovod can move."""
    same_size = {torch.bfloat16: torch.float16, torch.int16: torch.float16, torch.bool: torch.uint8}
    return tensor.view(same_size.get(tensor.dtype, tensor.dtype))


def _combine_updates(parameters: list[Tensor], before: list[Tensor]) -> None:
    """Replace each worker's update of the parameters by the Adasum of all updates."""
    import horovod.torch as hvd

    with torch.no_grad():
        for index, (parameter, old) in enumerate(zip(parameters, before, strict=True)):
            update = hvd.allreduce(parameter.detach() - old, op=hvd.Adasum, name=f"update.{index}")
            parameter.copy_(old + update)


def _refuse_group(group: Any) -> None:
    # Lightning names the group of all workers where none is given.
    if group is not None and group is not dist.group.WORLD:
        raise ConfigurationError("The strategy 'horovod' works on all workers; other process groups are not supported.")
