"""The gradients of a module inside a DeepSpeed engine: what sees them, and what may change them, until the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from itwinai.compat import deepspeed as compat_deepspeed
from itwinai.compat import lightning_loops, lightning_trainer
from itwinai.compat import torch as compat_torch
from itwinai.errors import ConfigurationError
from itwinai.strategies.gradient_averaging import average_gradients
from itwinai.strategies.zero_gather import whole_parameters

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

HOOKS = ("on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", "clip_gradients")
"""Hooks that see gradients or change them."""


def hooks_on_gradients(trainer: Trainer) -> list[str]:
    """Return the names of user code that reads or changes gradients before the optimizer steps."""
    module = trainer.lightning_module
    found = [
        f"{type(owner).__name__}.{name}"
        for owner in (module, *lightning_trainer.callbacks(trainer))
        for name in (*HOOKS, *(("optimizer_step",) if owner is module else ()))
        if _is_of_user(getattr(owner, name, None))
    ]
    if not module.automatic_optimization:
        found.append("manual optimization")
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
        found.append("gradient_clip_algorithm='value'")
    return found


def _is_of_user(hook: Callable[..., Any] | None) -> bool:
    if hook is None:
        return False
    return (getattr(hook, "__module__", None) or "").partition(".")[0] not in (
        "lightning",
        "pytorch_lightning",
        "itwinai",
    )


class UnshardedGradients:
    """Keeps gradients in the parameters, whole on each worker, until the engine steps.

    As it is, an engine reduces gradients in its step (stages 0 and 1) or to shards while backward runs (2 and 3), so
    that hooks see what is not averaged yet, or nothing at all. Here they are averaged over the workers whenever
    someone may look at them, and the engine is given them when all hooks are done.

    Args:
        engine: the engine.
        parameters: those that it trains.
        weigh: weighs what this worker adds, by its part of the global batch.
        manual: whether the module runs backward and steps itself.
        early: whether someone looks right after backward, and not only before the step.
    """

    def __init__(
        self,
        engine: Any,
        parameters: list[nn.Parameter],
        weigh: Callable[[Tensor], Tensor],
        manual: bool,
        early: bool,
    ) -> None:
        self.engine = engine
        self.parameters = parameters
        self.weigh = weigh
        self.manual = manual
        self.early = early
        self._weighed = False
        self._awaited: set[int] = set()
        self._handles: list[Any] = []
        if manual:  # every backward pass ends as under DDP, also one of the module
            self._handles += [parameter.register_hook(self._weigh) for parameter in parameters]
            self._handles += [parameter.register_post_accumulate_grad_hook(self._await_end) for parameter in parameters]

    @contextmanager
    def weighed_backward(self) -> Iterator[None]:
        """Say that the loss of the backward pass within is weighed already."""
        self._weighed = True
        try:
            yield
        finally:
            self._weighed = False

    def _weigh(self, gradient: Tensor) -> Tensor:
        return gradient if self._weighed else self.weigh(gradient)

    def _await_end(self, _: Tensor) -> None:
        # The first gradient of a pass asks for the average at its end, once: then all gradients of the pass are there.
        if compat_torch.backward_pass() not in self._awaited:
            self._awaited.add(compat_torch.backward_pass())
            compat_torch.after_backward_pass(self._end)

    def _end(self) -> None:
        self._awaited.clear()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Average the gradients over the workers; what is averaged already stays as it is."""
        if dist.get_world_size() == 1:
            return
        # A parameter that only some workers have used takes part on all of them: the all-reduce must be the same
        # everywhere. One that no worker used keeps no gradient, so that the optimizer leaves it unchanged.
        has_one = [parameter.grad is not None for parameter in self.parameters]
        used = torch.tensor(has_one, dtype=torch.int32, device=self.parameters[0].device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        averaged = [parameter for parameter, is_used in zip(self.parameters, used.tolist(), strict=True) if is_used]
        for parameter in averaged:
            if parameter.grad is None:
                _set_zeros(parameter)
        average_gradients(averaged)

    def before_step(self) -> None:
        """Average the gradients, unless that was done after each backward pass."""
        if not (self.manual or self.early):
            self.average()

    def hand_over(self) -> None:
        """Give the gradients to the engine, which steps next."""
        compat_deepspeed.hand_over_gradients(self.engine)

    def clip(self, value: float, algorithm: GradClipAlgorithmType) -> None:
        """Clip the gradients, which are averaged."""
        if algorithm == GradClipAlgorithmType.VALUE:
            torch.nn.utils.clip_grad_value_(self.parameters, value)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters, value)

    def end(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class EnginePrecision(DeepSpeedPrecision):
    """Lightning's precision plugin for DeepSpeed, with all hooks around backward and step as in one process.

    Args:
        precision: as Lightning accepts it.
        check: called before each step.

    Attributes:
        gradients: the gradients, if they are kept whole.
        stepping: whether the engine is stepping right now.
    """

    def __init__(self, precision: Any, check: Callable[[], None]) -> None:
        super().__init__(precision)
        self.check = check
        self.gradients: UnshardedGradients | None = None
        self.stepping = False

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert a module to half precision; full precision leaves it as it is, as without DeepSpeed."""
        return module if self.precision == "32-true" else super().convert_module(module)

    def convert_input(self, data: Any) -> Any:
        """Convert a batch to half precision; full precision leaves it as it is, as without DeepSpeed."""
        return data if self.precision == "32-true" else super().convert_input(data)

    def backward(self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Propagate the loss back, by the module's own ``backward`` if it has one."""
        engine: Any = model.trainer.model
        compat_deepspeed.begin_backward(engine.optimizer)
        if self.gradients is None:
            self._backward(engine, tensor, model, *args, **kwargs)
            return
        with self.gradients.weighed_backward():
            self._backward(engine, tensor, model, *args, **kwargs)
        if self.gradients.early:
            self.gradients.average()

    @staticmethod
    def _backward(engine: Any, tensor: Tensor, model: LightningModule, *args: Any, **kwargs: Any) -> None:
        try:
            if not _is_of_user(model.backward):
                engine.backward(tensor, *args, **kwargs)
                return
            with compat_deepspeed.counted_backward(engine):
                model.backward(engine.scale(tensor), *args, **kwargs)
        except AssertionError as error:
            raise ConfigurationError(
                "DeepSpeed does not support computing a parameter's gradient twice in one backward pass, e.g. by "
                "reentrant activation checkpointing of a layer that is used twice. Use "
                "checkpoint(use_reentrant=False), or DeepSpeedStrategy(whole_gradients=True), which sums gradients "
                "before reducing them."
            ) from error

    def post_backward(self, tensor: Tensor, module: LightningModule) -> Tensor:  # type: ignore[override]
        """Run the hooks after backward."""
        with self._hooks(module) if self.gradients is not None and self.gradients.early else nullcontext():
            return super().post_backward(tensor, module)

    def _hooks(self, module: LightningModule) -> AbstractContextManager[None]:
        """Return the context in which hooks see whole parameters beside whole gradients."""
        manual = not module.automatic_optimization  # all of it runs within a forward pass of the engine
        return nullcontext() if self.gradients is None or manual else whole_parameters(module, changed=False)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Run the closure, the hooks and the engine's step."""
        result = closure()
        if model.automatic_optimization and result is None:
            raise ConfigurationError(
                "DeepSpeed does not support a `training_step` that returns None: the other workers would wait for its "
                "gradients forever. Return a loss in every step, for example one multiplied by zero."
            )
        self.check()
        if self.gradients is not None:
            self.gradients.before_step()
        with self._hooks(model):
            lightning_loops.call_before_step(self, model, optimizer)
        if self.gradients is not None:
            self.gradients.hand_over()
        engine: Any = model.trainer.model
        self.stepping = True
        try:
            stepped = engine.step(**kwargs)
        finally:
            self.stepping = False
        compat_deepspeed.begin_accumulation(engine)
        return stepped

    def clear_gradients(self, engine: Any) -> Callable[..., None]:
        """Return the function that clears the gradients of an engine's optimizer, also already reduced ones."""
        optimizer = engine.optimizer
        clear = optimizer.zero_grad

        def zero_grad(set_to_none: bool = True) -> None:
            if not self.stepping:
                compat_deepspeed.begin_accumulation(engine)
                for group in compat_deepspeed.parameters_of_groups(optimizer):
                    for parameter in group:
                        parameter.grad = None  # stage 3 fails on the CPU where there is one
            clear(set_to_none=set_to_none)

        return zero_grad

    def clip_gradients(
        self,
        optimizer: Any,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Clip gradients that are kept whole; the engine clips its shards itself."""
        if self.gradients is not None and clip_val > 0:
            self.gradients.clip(clip_val, gradient_clip_algorithm)


def _set_zeros(parameter: Any) -> None:
    """Give a parameter, sharded or not, a whole gradient of zeros."""
    # torch checks a gradient against the shape of the parameter's data, which in stage 3 is empty between two passes.
    value = parameter.data
    parameter.data = torch.zeros(getattr(parameter, "ds_shape", value.shape), dtype=value.dtype, device=value.device)
    parameter.grad = torch.zeros_like(parameter.data)
    parameter.data = value
