"""What cannot be compiled, found before anything is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

from itwinai.compat import torch as compat_torch
from itwinai.compat import torch_compile
from itwinai.errors import CompileStepError
from itwinai.loops.compiled.updates import UPDATES, update_of
from itwinai.loops.hook_plan import ProfilerSpans, is_overridden

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_OWN = ("backward", "optimizer_step", "configure_gradient_clipping", "clip_gradients")
_NAMES = ", ".join(kind.__name__ for kind in UPDATES)


def check(trainer: Trainer) -> None:
    """Raise an error if the steps of this run cannot be compiled, whatever is in them.

    Raises:
        CompileStepError: that is so.
    """
    module: Any = trainer.lightning_module
    name = type(module).__name__
    if not module.automatic_optimization:
        raise CompileStepError(
            f"{name} uses manual optimization", "Return the loss from training_step and let the trainer optimize."
        )
    for method in _OWN:
        if is_overridden(module, method, LightningModule):
            raise CompileStepError(f"{name} overrides {method}", f"Remove {name}.{method}.")
    _check_strategy(trainer)
    _check_optimizer(trainer)
    _check_hooks(module)
    if type(module).log is not LightningModule.log:
        raise CompileStepError(f"{name} overrides log", f"Remove {name}.log.")
    if torch.is_anomaly_enabled():
        raise CompileStepError("detect_anomaly=True looks at single operations", "Set detect_anomaly=False.")
    if ProfilerSpans(trainer).profiler is not None:
        raise CompileStepError("a profiler times single hooks of a step", "Remove the argument profiler.")


def _check_strategy(trainer: Trainer) -> None:
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if type(strategy) is not SingleDeviceStrategy:
        raise CompileStepError(
            f"the strategy {getattr(strategy, 'strategy_name', type(strategy).__name__)} runs steps in its own way",
            "Train in one process.",
        )
    known = type(precision) in (Precision, DoublePrecision, HalfPrecision) or (
        type(precision) is MixedPrecision and precision.scaler is None
    )
    if not known or any(not name.startswith("_") and callable(value) for name, value in vars(precision).items()):
        raise CompileStepError(
            f"the precision {trainer.precision} scales the loss by its gradients, or is a plugin of your own",
            "Choose precision='bf16-mixed' or '32-true'.",
        )


def _check_optimizer(trainer: Trainer) -> None:
    optimizer = trainer.optimizers[0]
    name = type(optimizer).__name__
    if update_of(optimizer) is None:
        raise CompileStepError(f"the optimizer {name} is none of {_NAMES}", f"Choose one of {_NAMES} from torch.optim.")
    if torch_compile.has_own_step(optimizer):
        raise CompileStepError(f"{name}.step is replaced or has hooks", "Do that in on_before_optimizer_step.")
    for group in optimizer.param_groups:
        flags = [flag for flag in ("differentiable", "dampening") if group.get(flag)]
        if flags:
            raise CompileStepError(f"{name} is used with {flags[0]}", f"Remove {flags[0]}.")
        numbers = [key for key, value in group.items() if key != "params" and isinstance(value, torch.Tensor)]
        if numbers:
            raise CompileStepError(
                f"{numbers[0]} of {name} is a tensor", f"Give {name} a plain number as {numbers[0]}."
            )
        if any(parameter.is_complex() for parameter in group["params"]):
            raise CompileStepError("some parameters are complex", "Keep real and imaginary parts as two parameters.")


def _check_hooks(module: LightningModule) -> None:
    hooked = compat_torch.parameter_hooks(module)
    if hooked:
        raise CompileStepError(
            f"a hook is registered on the gradient of {next(iter(hooked))}", "Change gradients in on_after_backward."
        )
    for name, one in module.named_modules():
        if torch_compile.own_hooks(one):
            raise CompileStepError(
                f"a hook is registered on the module {name or type(module).__name__}",
                "Call what it does in forward or training_step.",
            )
