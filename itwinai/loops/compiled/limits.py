"""What cannot be compiled, found before anything is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy

from itwinai.compat import torch as compat_torch
from itwinai.compat import torch_compile
from itwinai.errors import CompileStepError
from itwinai.interfaces import AveragesFlat
from itwinai.loops.compiled.updates import UPDATES, update_of
from itwinai.loops.hook_plan import ProfilerSpans, is_overridden

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

OVERLAPS = 25 * 2**20
"""Bytes of gradients above which workers exchange them while backward runs: DDP sends as many together."""

_OWN = ("backward", "optimizer_step", "configure_gradient_clipping", "clip_gradients")
# What a strategy does in a step, and graphs do in its place.
_OF_STRATEGIES = ("training_step", "backward", "pre_backward", "post_backward", "optimizer_step", "weigh_loss")
_KNOWN = ("itwinai", "lightning")
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
    check_strategy(trainer)
    _check_optimizer(trainer)
    _check_hooks(module)
    if type(module).log is not LightningModule.log:
        raise CompileStepError(f"{name} overrides log", f"Remove {name}.log.")
    if torch.is_anomaly_enabled():
        raise CompileStepError("detect_anomaly=True looks at single operations", "Set detect_anomaly=False.")
    if ProfilerSpans(trainer).profiler is not None:
        raise CompileStepError("a profiler times single hooks of a step", "Remove the argument profiler.")


def check_strategy(trainer: Trainer) -> None:
    """Raise an error if it is the strategy or the precision that graphs cannot replace.

    Raises:
        CompileStepError: that is so.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if isinstance(strategy, AveragesFlat) and not any(_is_users(strategy, name) for name in _OF_STRATEGIES):
        strategy.check_flat_average()
        _check_workers(trainer)
    elif type(strategy) is not SingleDeviceStrategy:
        raise CompileStepError(
            f"the strategy {getattr(strategy, 'strategy_name', type(strategy).__name__)} runs steps in its own way",
            "Train in one process, or with the strategy 'ddp' or 'horovod'.",
        )
    known = type(precision) in (Precision, DoublePrecision, HalfPrecision) or (
        type(precision) is MixedPrecision and precision.scaler is None
    )
    if not known or any(not name.startswith("_") and callable(value) for name, value in vars(precision).items()):
        raise CompileStepError(
            f"the precision {trainer.precision} scales the loss by its gradients, or is a plugin of your own",
            "Choose precision='bf16-mixed' or '32-true'.",
        )


def _check_workers(trainer: Trainer) -> None:
    """Look at what several workers would have to do at once within a graph."""
    if trainer.world_size == 1:
        return
    module = trainer.lightning_module
    for name, one in module.named_modules():
        if type(one).__name__ == "SyncBatchNorm":
            raise CompileStepError(
                f"{name} exchanges statistics between the workers in forward",
                "Use a layer without running statistics, such as GroupNorm, or larger batches with BatchNorm.",
            )
    if any(parameter.is_complex() for parameter in module.parameters()):
        raise CompileStepError("some parameters are complex", "Keep real and imaginary parts as two parameters.")


def check_size(trainer: Trainer) -> None:
    """Raise an error if workers had better exchange gradients while backward runs, which two graphs cannot do.

    Raises:
        CompileStepError: that is so.
    """
    if trainer.world_size == 1:
        return
    trained = [parameter for parameter in trainer.lightning_module.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    if size > OVERLAPS:
        raise CompileStepError(
            f"the gradients have {size / 2**20:.0f} MiB, and above {OVERLAPS / 2**20:.0f} MiB it is faster to exchange "
            "them while backward runs, as is done without a graph",
            "Set compile_step=True, which compiles it anyway.",
        )


def _is_users(strategy: Strategy, name: str) -> bool:
    """Return whether somebody has written a method of a strategy, for a class of their own or on the object."""
    method = getattr(type(strategy), name, None)
    return name in vars(strategy) or (getattr(method, "__module__", None) or "").partition(".")[0] not in _KNOWN


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
    for name, kinds in compat_torch.parameter_hooks(module).items():
        # Those of a strategy start the exchange of a gradient that autograd has accumulated, which graphs do not.
        if any(not (getattr(hook, "__module__", None) or "").startswith("itwinai.") for kind in kinds for hook in kind):
            raise CompileStepError(
                f"a hook is registered on the gradient of {name}", "Change gradients in on_after_backward."
            )
    for name, one in module.named_modules():
        if torch_compile.own_hooks(one):
            raise CompileStepError(
                f"a hook is registered on the module {name or type(module).__name__}",
                "Call what it does in forward or training_step.",
            )
