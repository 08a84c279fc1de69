"""Averages gradients over the workers after a backward pass, where DDP's reducer cannot do it during the pass.

The reducer expects each parameter that was trainable at its creation exactly once per pass, and has to be prepared
before a pass. Gradients averaged here may come from any pass, any number of times: an average of gradients that are
partly averages already is the average of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter_ns

import torch
import torch.distributed as dist
from torch import Tensor, nn

from itwinai.errors import UnusedParametersError
from itwinai.profiling.step_timer import StepClock
from itwinai.strategies.backward import BackwardHooks, can_require_grad, shortened

BUCKET = 25 * 2**20
"""Bytes that travel together, as in DDP."""


class GradientAverager:
    """Averages the gradients of a module's parameters after each backward pass.

    Args:
        parameters: by name, the same on all workers.
        device: of this worker.
        weight: of gradients of passes that the strategy does not run.

    Attributes:
        clock: is told how long this worker waits for others.
        averaged: whether a pass has been averaged.
        unused: parameters to which the last pass gave no gradient on some worker.
        repeated: whether a pass gave several gradients to one parameter, on any worker.
        nested: whether a gradient came from a pass inside another, on any worker.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], device: torch.device, weight: Callable[[], float]) -> None:
        self.clock: StepClock | None = None
        self.averaged = self.repeated = self.nested = False
        self.unused: list[str] = []
        self.hooks = BackwardHooks(parameters, self._average, weight)
        self._parameters = {name: parameter for name, parameter in parameters.items() if can_require_grad(parameter)}
        self._device = device
        # What has accumulated until now is not averaged; where it is, to do it again changes nothing.
        self.hooks.reached.update(name for name, parameter in self._parameters.items() if parameter.grad is not None)

    def remove(self) -> None:
        """Follow backward passes no longer."""
        self.hooks.remove()

    @torch.no_grad()
    def _average(self) -> None:
        began = perf_counter_ns()
        names, hooks = list(self._parameters), self.hooks
        used = [_kind(self._parameters[name].grad) if name in hooks.reached else _NONE for name in names]
        missing = [not kind and self._parameters[name].requires_grad for name, kind in zip(names, used, strict=True)]
        flags = torch.tensor([*used, *missing, hooks.repeated, hooks.nested], dtype=torch.int32, device=self._device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        *found, repeated, nested = flags.tolist()
        used_anywhere, missing_anywhere = found[: len(names)], found[len(names) :]
        for name, kind in zip(names, used_anywhere, strict=True):
            if kind and self._parameters[name].grad is None:
                self._parameters[name].grad = _zeros(self._parameters[name], kind)
        average_gradients([self._parameters[name] for name, kind in zip(names, used_anywhere, strict=True) if kind])
        self.unused = [name for name, was in zip(names, missing_anywhere, strict=True) if was]
        self.averaged, self.repeated, self.nested = True, bool(repeated), bool(nested)
        if self.clock is not None:
            waited = perf_counter_ns() - began
            self.clock.communicated(waited, waited)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters by their averages over all workers.

    Args:
        parameters: the same ones on all workers.
    """
    world_size = dist.get_world_size()
    dense = []
    for parameter in parameters:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce() / world_size
            dist.all_reduce(parameter.grad)
        elif parameter.grad.numel():
            gradient = parameter.grad.detach()
            dense.append(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
    started = []
    for bucket in _buckets(dense):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(world_size)
        started.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in started:
        assert work is not None
        work.wait()
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view(gradient.shape))


_NONE, _DENSE, _SPARSE = range(3)


def _kind(gradient: Tensor | None) -> int:
    return _NONE if gradient is None else _SPARSE if gradient.is_sparse else _DENSE


def _zeros(parameter: nn.Parameter, kind: int) -> Tensor:
    """Return what a worker without a gradient adds to those of others, which are of the same kind."""
    if kind == _DENSE:
        return torch.zeros_like(parameter)
    nowhere = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    return torch.sparse_coo_tensor(nowhere, parameter.new_empty(0, *parameter.shape[1:]), parameter.shape)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of the same type and device, in their order."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for gradient in gradients:
        kind = (gradient.dtype, gradient.device)
        open_buckets.setdefault(kind, []).append(gradient)
        sizes[kind] = sizes.get(kind, 0) + gradient.numel() * gradient.element_size()
        if sizes[kind] >= BUCKET:
            yield open_buckets.pop(kind)
            del sizes[kind]
    yield from open_buckets.values()


def unused_error(names: Sequence[str], strategy: str) -> UnusedParametersError:
    """Return the error that tells of parameters without a gradient.

    Args:
        names: their names, as far as they are known.
        strategy: what expects them to have none, as one writes it.
    """
    named = f": {shortened(names)}" if names else ""
    return UnusedParametersError(
        f"{len(names) or 'Some'} parameters got no gradient in a step{named}. Use them in the loss, freeze them with "
        f"requires_grad_(False), or set strategy={strategy}."
    )
