"""Horovod: gradients are averaged by Horovod's own engine, over Gloo, MPI or NCCL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.metric import jit_distributed_available

from itwinai.errors import ConfigurationError, UnusedParametersError, require
from itwinai.launchers.local import free_port
from itwinai.loops.exchange import check_shapes
from itwinai.measure.steps import StepClock
from itwinai.strategies.base import LaunchedStrategy, LocalProcesses, WorkerSource

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Compression = Literal["fp16"]
Operation = Literal["Average", "Adasum"]


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
            group: not supported by Horovod; None.
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
        reduced = hvd.allreduce(_known_to_horovod(tensor.detach()), op=operations[name])
        if name in ("mean", "avg"):
            reduced = reduced / self.world_size
        with torch.no_grad():
            return tensor.copy_(reduced)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Stack the tensors of all workers along a new first dimension.

        Args:
            tensor: the same shape on all workers.
            group: not supported by Horovod; None.
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

    with torch.inference_mode(False):  # Horovod resizes its output in a thread that is not in inference mode
        # Horovod concatenates along the first dimension.
        rows = _known_to_horovod(tensor.detach()).contiguous().unsqueeze(0)
        return hvd.allgather(rows).to(tensor.dtype)


class HorovodStrategy(LaunchedStrategy, HorovodCollectives):
    """Train with Horovod.

    The all-reduce of a gradient starts when backward has finished with it, and all are awaited at the end of backward,
    so that closures, clipping and gradient accumulation see averaged gradients. The learning rate is not scaled.

    Args:
        compression: exchange gradients as ``"fp16"``; changes the numbers.
        op: ``"Average"``, or ``"Adasum"`` (Maleki et al., 2020, arXiv:2006.02924), which combines the workers' updates
            instead of their gradients. Adasum needs a Horovod that was built with MPI.
        gradient_predivide_factor: divide gradients by this before they are summed and by the rest afterwards, against
            overflow in fp16; 1 divides afterwards only.
        find_unused_parameters: expect that some parameters get no gradient in some steps. They then count as zero on
            workers that have none, and stay untouched where no worker has one. Costs a small exchange per step;
            without it such parameters are an error, as under DDP.
        workers: where workers come from; processes of this machine by default.
        **kwargs: further arguments of lightning's ParallelStrategy.

    Raises:
        ConfigurationError: an option is unknown.
        MissingPackageError: Horovod is not installed.
    """

    strategy_name = "horovod"
    is_distributed = True  # lightning would inject no sampler and ignore sync_dist otherwise

    def __init__(
        self,
        *,
        compression: Compression | None = None,
        op: Operation = "Average",
        gradient_predivide_factor: float = 1.0,
        find_unused_parameters: bool = False,
        workers: WorkerSource | None = None,
        **kwargs: Any,
    ) -> None:
        require("horovod", "Build it with `itwinai install horovod`.", "The strategy 'horovod'")
        if compression not in (None, "fp16"):
            raise ConfigurationError(f"compression={compression!r} is unknown; choose 'fp16' or None.")
        if op not in ("Average", "Adasum"):
            raise ConfigurationError(f"op={op!r} is unknown; choose 'Average' or 'Adasum'.")
        if op == "Adasum" and gradient_predivide_factor != 1.0:
            raise ConfigurationError("gradient_predivide_factor is for op='Average'; Adasum does not average.")
        super().__init__(**kwargs)
        self.worker_source = workers or LocalProcesses()
        self.compression = compression
        self.op = op
        self.gradient_predivide_factor = gradient_predivide_factor
        self.find_unused_parameters = find_unused_parameters
        self._synchronizer: GradientSynchronizer | None = None
        self._buffers: list[Tensor] = []
        self._metrics: list[Metric] = []
        self._store: dist.TCPStore | None = None
        self._clock: StepClock | None = None

    # ---------------------------------------------------------------------------------------------- the group

    def setup_environment(self) -> None:
        from itwinai.launchers.horovod import initialize

        assert self.cluster_environment is not None
        self.set_world_ranks()
        super().setup_environment()  # selects this worker's GPU, which has to come before Horovod touches any
        initialize(self.cluster_environment)
        self.announce()

    def gather_objects(self, value: Any) -> list[Any]:
        import horovod.torch as hvd

        gathered: list[Any] = hvd.allgather_object(value, name="itwinai.gather")
        return gathered

    def coordination_store(self) -> dist.Store:
        """Return a store that rank 0 serves, until the next is asked for; Horovod itself has none."""
        assert self.cluster_environment is not None
        address = self.cluster_environment.main_address
        if self.is_global_zero:
            self._store = dist.TCPStore(address, free_port(), is_master=True, wait_for_workers=False)
        port = self.broadcast(self._store and self._store.port)
        if self._store is not None:
            return self._store.clone()  # type: ignore[attr-defined]
        return dist.TCPStore(address, port, is_master=False)

    def describe_backend(self) -> str:
        import horovod.torch as hvd

        return (
            "nccl" if self.root_device.type == "cuda" and hvd.nccl_built() else "mpi" if hvd.mpi_enabled() else "gloo"
        )

    def setup(self, trainer: Trainer) -> None:
        import horovod.torch as hvd

        assert self.accelerator is not None and self.model is not None
        if self._layer_sync is not None:
            raise ConfigurationError(
                "sync_batchnorm=True exchanges statistics through torch.distributed, which the strategy 'horovod' does "
                "not use. Put horovod.torch.SyncBatchNorm into the module, or use the strategy 'ddp'."
            )
        if self.op == "Adasum" and not hvd.mpi_built():
            raise ConfigurationError(
                "op='Adasum' needs a Horovod with MPI: HOROVOD_WITH_MPI=1 itwinai install horovod --force"
            )
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        # Parameters, and buffers outside the state dict too: workers may have drawn different initial weights.
        _broadcast([*self.model.parameters(), *self.model.buffers()])
        self._metrics = synchronize_metrics(self.model)
        if trainer.training:
            self.setup_optimizers(trainer)
            self.setup_precision_plugin()
            self._buffers = list(self.model.buffers())
            if self.op == "Average":
                self._synchronizer = GradientSynchronizer(
                    self.model, self.compression, self.gradient_predivide_factor, self.find_unused_parameters
                )
        else:
            self.setup_precision_plugin()

    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    def teardown(self) -> None:
        if self._synchronizer is not None:
            self._synchronizer.remove()
            self._synchronizer = None
        self._clock = None
        self._buffers = []
        for metric in self._metrics:
            metric.dist_sync_fn, metric.distributed_available_fn = None, jit_distributed_available
        self._metrics = []
        super().teardown()

    # ------------------------------------------------------------------------------------------------- steps

    def time_communication(self, clock: StepClock) -> None:
        self._clock = clock
        if self._synchronizer is not None:
            self._synchronizer.clock = clock
        clock.covers_gradients = True

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._buffers:
            began = perf_counter_ns()
            _broadcast(self._buffers)  # as DDP does: running statistics are rank 0's
            self._waited_since(began)
        return super().training_step(*args, **kwargs)

    def on_validation_start(self) -> None:
        _broadcast(self._buffers)
        super().on_validation_start()

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if self._synchronizer is not None:
            self._synchronizer.wait()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        if self._synchronizer is None:
            yield
            return
        with self._synchronizer.no_sync():
            yield

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
    """Averages the gradients of a module over all workers while backward runs.

    Args:
        module: the module; parameters are known by their names in it.
        compression: ``"fp16"`` or None.
        predivide_factor: see `HorovodStrategy`.
        find_unused: see `HorovodStrategy`.
    """

    def __init__(self, module: nn.Module, compression: str | None, predivide_factor: float, find_unused: bool) -> None:
        import horovod.torch as hvd

        self.hvd = hvd
        self.compression = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
        self.predivide_factor = predivide_factor
        self.find_unused = find_unused
        self.parameters = dict(module.named_parameters())
        self.enabled = True
        self.clock: StepClock | None = None
        self._began = 0
        self._pending: dict[str, Callable[[], None]] = {}
        # Also on parameters that are frozen now: they may be unfrozen during the run.
        frozen = [parameter for parameter in self.parameters.values() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._starter(name))
            for name, parameter in self.parameters.items()
        ]
        for parameter in frozen:
            parameter.requires_grad_(False)

    def _starter(self, name: str) -> Callable[[Tensor], None]:
        def start(parameter: Tensor) -> None:
            if self.enabled:
                if not self._pending:
                    self._began = perf_counter_ns()
                self._pending[name] = self._all_reduce(name, parameter)

        return start

    def _all_reduce(self, name: str, parameter: Tensor) -> Callable[[], None]:
        """Start averaging a gradient, and return what waits for the average and stores it."""
        hvd, gradient = self.hvd, parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            finish = hvd.sparse_allreduce_async(gradient, name=f"gradient.{name}", op=hvd.Average)

            def store_sparse() -> None:
                parameter.grad = finish()

            return store_sparse
        compressed, context = self.compression.compress(_known_to_horovod(gradient))
        # The engine divides by the number of workers itself, after the sum.
        handle = hvd.allreduce_async_(
            compressed,
            name=f"gradient.{name}",
            op=hvd.Average,
            prescale_factor=1.0 / self.predivide_factor,
            postscale_factor=self.predivide_factor,
        )

        def store() -> None:
            average = self.compression.decompress(hvd.synchronize(handle), context)
            if average is not gradient:
                gradient.copy_(average)

        return store

    @torch.no_grad()
    def wait(self) -> None:
        """Wait until all gradients of this backward are averaged.

        Raises:
            UnusedParametersError: a parameter got no gradient, and ``find_unused`` is off.
        """
        if not self.enabled:
            return
        unused = [name for name, p in self.parameters.items() if p.requires_grad and name not in self._pending]
        if self.find_unused:
            self._complete(unused)
        elif unused:
            raise UnusedParametersError(
                f"{len(unused)} parameters got no gradient in this step: {', '.join(unused[:8])}"
                f"{', ...' if len(unused) > 8 else ''}. Use them in the loss, freeze them with requires_grad_(False), "
                "or set strategy=HorovodStrategy(find_unused_parameters=True)."
            )
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

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let gradients accumulate on each worker by itself."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    def remove(self) -> None:
        """Take the hooks off the module."""
        for hook in self._hooks:
            hook.remove()


def _broadcast(tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of rank 0."""
    import horovod.torch as hvd

    if hvd.size() == 1:
        return
    with torch.no_grad():
        handles = [
            hvd.broadcast_async_(_bits(tensor.detach()), root_rank=0, name=f"tensor.{index}")
            for index, tensor in enumerate(tensors)
        ]
        for handle in handles:
            hvd.synchronize(handle)


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
    if group is not None:
        raise ConfigurationError("The strategy 'horovod' works on all workers; process groups are not supported.")


def synchronize_metrics(module: nn.Module) -> list[Metric]:
    """Let torchmetrics synchronise through Horovod: by itself it knows torch.distributed only.

    Returns:
        The metrics that were changed; those with a synchronisation of the user's own are left alone.
    """
    metrics = [m for m in module.modules() if isinstance(m, Metric) and m.dist_sync_fn is None]
    for metric in metrics:
        metric.dist_sync_fn = gather_uneven
        metric.distributed_available_fn = _always
    return metrics


def gather_uneven(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Return the tensors of all workers by rank; their shapes may differ."""
    import horovod.torch as hvd

    _refuse_group(group)
    with torch.inference_mode(False):  # see _stack
        shapes = hvd.allgather_object(tuple(tensor.shape))
        flat = hvd.allgather(_known_to_horovod(tensor.detach()).reshape(-1)).to(tensor.dtype)
    parts = flat.split([math.prod(shape) for shape in shapes])
    gathered = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    gathered[hvd.rank()] = tensor  # the graph of this worker's own values stays intact
    return gathered


def _always() -> bool:
    return True
