"""What a step has to call: drawn up once per epoch, so that the loop need not find it out in every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from itwinai.compat import lightning_checkpoints, lightning_logging, lightning_loops, lightning_trainer
from itwinai.interfaces import SkipsHooks

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer

Call = Callable[..., Any]


@dataclass(frozen=True)
class HookCalls:
    """The implementations of one hook that someone has written, callbacks first, as Lightning calls them.

    Attributes:
        name: the hook.
        trainer: first argument of the callbacks.
        module: second argument of the callbacks; while the hook runs, `self.log` finds its name there.
        of_callbacks: the callbacks' methods, in the order of the callbacks.
        of_module: the module's method.
    """

    name: str
    trainer: Trainer
    module: LightningModule
    of_callbacks: tuple[Call, ...] = ()
    of_module: Call | None = None

    def __call__(self, *args: Any) -> Any:
        """Call all implementations; return what the module's returns."""
        scope = vars(self.module)
        outer, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], self.name
        for call in self.of_callbacks:
            call(self.trainer, self.module, *args)
        returned = None if self.of_module is None else self.of_module(*args)
        scope[lightning_logging.HOOK_NAME] = outer
        return returned


class ProfilerSpans:
    """Turns calls into spans of the trainer's profile, named as Lightning names them.

    Args:
        trainer: whose profiler it is. Without one, calls stay as they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        self.profiler = None if type(profiler) is PassThroughProfiler else profiler

    def around(self, call: Call, name: str) -> Call:
        """Return a call that is a section of the profile."""
        profiler = self.profiler
        if profiler is None:
            return call

        def profiled(*args: Any, **kwargs: Any) -> Any:
            with profiler.profile(name):
                return call(*args, **kwargs)

        return profiled


def is_overridden(owner: Any, name: str, base: type) -> bool:
    """Return whether an object has its own implementation of a method: in its class, or on itself."""
    return name in vars(owner) or getattr(type(owner), name, None) is not getattr(base, name)


def is_idle(callback: Callback, name: str) -> bool:
    """Return whether a callback's implementation of a hook is known to do nothing in this run."""
    if isinstance(callback, SkipsHooks):
        return callback.skips_hook(name)
    return name == "on_train_batch_end" and lightning_checkpoints.does_nothing_per_batch(callback)


def collect_hook(name: str, trainer: Trainer, spans: ProfilerSpans) -> HookCalls | None:
    """Collect the implementations of a hook; return None if there is none.

    A profile shows Lightning's empty hooks as well, so with a profiler they count as written.
    """
    module = trainer.lightning_module
    profiled = spans.profiler is not None
    of_callbacks = tuple(
        spans.around(getattr(callback, name), f"[Callback]{callback.state_key}.{name}")
        for callback in (lightning_trainer.callbacks(trainer) if hasattr(Callback, name) else ())
        if (profiled or is_overridden(callback, name, Callback) and not is_idle(callback, name))
        and callable(getattr(callback, name))
    )
    of_module: Call | None = None
    if hasattr(module, name) and (profiled or is_overridden(module, name, LightningModule)):
        candidate = getattr(module, name)
        if callable(candidate):
            of_module = spans.around(candidate, f"[LightningModule]{type(module).__name__}.{name}")
    if not of_callbacks and of_module is None:
        return None
    return HookCalls(name, trainer, module, of_callbacks, of_module)


@dataclass(frozen=True)
class InScope:
    """A call during which `self.log` finds a hook's name on the module."""

    name: str
    module: LightningModule
    call: Call

    def __call__(self, *args: Any) -> Any:
        """Call, with the name set on the module."""
        scope = vars(self.module)
        outer, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], self.name
        returned = self.call(*args)
        scope[lightning_logging.HOOK_NAME] = outer
        return returned


def step_call(name: str, context: str, trainer: Trainer, spans: ProfilerSpans) -> Call:
    """Return what runs ``training_step``, ``validation_step``...: the module's own method where no wrapper is needed.

    Args:
        name: the step.
        context: the precision plugin's context of this step.
        trainer: the trainer.
        spans: the profile.
    """
    strategy, precision, module = trainer.strategy, trainer.precision_plugin, trainer.lightning_module
    bare = (
        not is_overridden(strategy, name, Strategy)
        and strategy.model is module
        and not is_overridden(precision, context, Precision)
        and not is_overridden(precision, "forward_context", Precision)
    )
    step = spans.around(getattr(module if bare else strategy, name), f"[Strategy]{type(strategy).__name__}.{name}")
    return InScope(name, module, step)


class BatchTransfer:
    """Brings a batch to the device by the hooks that someone has written, and by the shortest way otherwise.

    Args:
        trainer: the trainer.
        spans: the profile.
    """

    def __init__(self, trainer: Trainer, spans: ProfilerSpans) -> None:
        self.trainer = trainer
        strategy, precision = trainer.strategy, trainer.precision_plugin
        self.device = strategy.root_device
        module = trainer.lightning_module
        datamodule = lightning_trainer.datamodule(trainer)
        self.plain = (
            spans.profiler is None
            and not is_overridden(strategy, "batch_to_device", Strategy)
            and not is_overridden(precision, "convert_input", Precision)
            and not any(
                is_overridden(module, name, LightningModule)
                or (datamodule is not None and is_overridden(datamodule, name, LightningDataModule))
                for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
            )
        )

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Return the batch on the device."""
        if self.plain and (there := _if_there(batch, self.device)) is not None:
            return there
        return lightning_loops.transfer_batch(self.trainer, batch, dataloader_idx)


def _if_there(batch: Any, device: torch.device) -> Any:
    """Return a batch whose tensors all are on the device, in a new container, or None if that is not so.

    The container is new, like Lightning's: changing a batch in place must not change the dataset.
    """
    kind = type(batch)
    if kind is Tensor:
        return batch if batch.device == device else None
    if kind is dict:
        return batch.copy() if all(type(v) is Tensor and v.device == device for v in batch.values()) else None
    if kind is list or kind is tuple:
        for value in batch:
            if type(value) is not Tensor or value.device != device:
                return None
        return batch.copy() if kind is list else batch
    return None


# As it is defined. Where someone has put something else in its place, as tests do, that has to be called.
LIGHTNING_BACKWARD = Strategy.backward


def has_plain_backward(strategy: Strategy, precision: Precision) -> bool:
    """Return whether ``strategy.backward`` is nothing but the hooks around the module's ``backward``."""
    by_class = type(strategy).backward in (LIGHTNING_BACKWARD, getattr(type(strategy), "lean_backward", None))
    return (
        by_class
        and "backward" not in vars(strategy)
        and _is_plain(precision, ("pre_backward", "backward", "post_backward"))
    )


def has_plain_optimizer_step(strategy: Strategy, precision: Precision) -> bool:
    """Return whether ``strategy.optimizer_step`` is nothing but the optimizer's ``step`` with hooks in its closure."""
    return lightning_loops.only_steps_optimizer(strategy) and _is_plain(
        precision, ("optimizer_step", "_after_closure", "_wrap_closure", "_clip_gradients")
    )


def _is_plain(precision: Precision, methods: tuple[str, ...]) -> bool:
    """Return whether a precision plugin has Lightning's methods, for full precision or autocast without a scaler."""
    base = MixedPrecision if type(precision) is MixedPrecision and precision.scaler is None else Precision
    return not any(is_overridden(precision, method, base) for method in methods)
