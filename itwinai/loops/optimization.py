"""Forward, backward and optimizer step of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from typing_extensions import override

from itwinai.compat import lightning_logging, lightning_loops, torch_steps
from itwinai.errors import ConfigurationError
from itwinai.loops.hook_plan import (
    ProfilerSpans,
    collect_hook,
    has_plain_backward,
    has_plain_optimizer_step,
    is_overridden,
    step_call,
)
from itwinai.profiling.step_timer import Phase, StepClock

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Result = lightning_loops.ClosureResult


class LeanOptimization(AbstractClosure[Result]):
    """Automatic optimization of one batch after the other; it is itself the closure that the optimizer is given.

    Args:
        trainer: the trainer, with everything set up.
        spans: the profile.

    Attributes:
        clock: times the phases of the step in work, if it is one that is split.
        skipped: number of steps of this epoch that returned None.
    """

    def __init__(self, trainer: Trainer, spans: ProfilerSpans) -> None:
        super().__init__()
        self.clock: StepClock | None = None
        strategy, module, precision = trainer.strategy, trainer.lightning_module, trainer.precision_plugin
        self.trainer = trainer
        self.strategy = strategy
        self.module = module
        self.scope = vars(module)
        self.progress = lightning_loops.optimizer_progress(trainer)
        self.optimizer = trainer.optimizers[0]
        self.lightning_optimizer = lightning_loops.lightning_optimizer(strategy)
        self.raw_optimizer = self.lightning_optimizer.optimizer
        self.step_optimizer = torch_steps.step_call(self.raw_optimizer)
        self.clear_optimizer = torch_steps.zero_grad_call(self.raw_optimizer)

        self.training_step = step_call("training_step", "train_step_context", trainer, spans)
        self.takes_batch_idx = lightning_loops.takes_batch_idx(module.training_step)
        self.after_training_step = (
            strategy.post_training_step if is_overridden(strategy, "post_training_step", Strategy) else None
        )

        self.skips_backward = lightning_loops.skips_backward(trainer)
        self.before_zero_grad = collect_hook("on_before_zero_grad", trainer, spans)
        self.zero_grad = collect_hook("optimizer_zero_grad", trainer, spans)

        self.plain_backward = spans.profiler is None and has_plain_backward(strategy, precision)
        self.weigh_loss = getattr(strategy, "weigh_loss", None)
        self.strategy_pre_backward = (
            strategy.pre_backward if is_overridden(strategy, "pre_backward", Strategy) else None
        )
        self.strategy_post_backward = (
            strategy.post_backward if is_overridden(strategy, "post_backward", Strategy) else None
        )
        self.before_backward = collect_hook("on_before_backward", trainer, spans)
        self.module_backward = (
            module.backward if is_overridden(module, "backward", LightningModule) else torch_steps.backward_call()
        )
        self.after_backward = collect_hook("on_after_backward", trainer, spans)

        self.plain_step = (
            spans.profiler is None
            and not is_overridden(module, "optimizer_step", LightningModule)
            and has_plain_optimizer_step(strategy, precision)
        )
        self.before_optimizer_step = collect_hook("on_before_optimizer_step", trainer, spans)
        # Those are called also when there is nothing to clip by.
        self.clips = is_overridden(precision, "clip_gradients", Precision) or any(
            is_overridden(module, name, LightningModule) for name in ("configure_gradient_clipping", "clip_gradients")
        )

        self.skipped = 0
        # Of the batch in work.
        self.arguments: tuple[Any, ...] = ()
        self.batch_idx = 0
        self.window = 1

    def holds(self) -> bool:
        """Return whether the optimizer is still the one of this plan."""
        return lightning_loops.lightning_optimizer(self.strategy) is self.lightning_optimizer

    def check_any_loss(self, batches: int) -> None:
        """Raise an error where no step of an epoch has returned a loss: the next ones would train nothing either.

        Args:
            batches: number of steps of the epoch.

        Raises:
            ConfigurationError: that is so.
        """
        if self.skipped and self.skipped == batches:
            raise ConfigurationError(
                f"{type(self.module).__name__}.training_step returned None in every batch of the epoch, so nothing was "
                "trained. Add `return loss` at its end; with manual optimization, set self.automatic_optimization = "
                "False in __init__."
            )

    def run(self, batch: Any, batch_idx: int, accumulating: bool) -> dict[str, Any]:
        """Train on one batch.

        Args:
            batch: the batch, on the device.
            batch_idx: its index in the epoch.
            accumulating: whether the gradients are only accumulated for a later step.

        Returns:
            What Lightning passes on as the output of the batch.
        """
        self.arguments = (batch, batch_idx) if self.takes_batch_idx else (batch,)
        self.batch_idx = batch_idx
        self.window = self.trainer.accumulate_grad_batches
        if accumulating and not self.strategy.handles_gradient_accumulation:
            with lightning_loops.without_gradient_sync(self.strategy):
                self()
        else:
            self.step(accumulating)
        self.arguments = ()
        result = self.consume_result()
        return {} if result.loss is None else result.asdict()

    def step(self, accumulating: bool) -> None:
        """Let the optimizer step, which runs this closure."""
        counters = self.progress.step
        if not accumulating:
            counters.increment_ready()
        scope = self.scope
        outer, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], "optimizer_step"
        if self.plain_step:
            self.step_optimizer(self.until_step)
        else:
            lightning_loops.call_optimizer_step(self.trainer, self.batch_idx, self.lightning_optimizer, self)
        scope[lightning_logging.HOOK_NAME] = outer
        if self.clock is not None:
            self.clock.mark(Phase.OPTIMIZER)
        if not accumulating:
            counters.increment_completed()

    def until_step(self) -> Tensor | None:
        """Do all that comes before the parameters change."""
        loss = self()
        optimizer = self.raw_optimizer
        if self.before_optimizer_step is not None:
            self.before_optimizer_step(optimizer)
            if self.clock is not None:
                self.clock.mark(Phase.CALLBACKS)
        if self.clips or self.trainer.gradient_clip_val is not None:
            lightning_loops.clip_gradients(self.trainer, optimizer)
        return loss

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Run forward and backward; return the loss, detached."""
        if torch.is_grad_enabled():
            self._result = self.closure()
        else:
            with torch.enable_grad():
                self._result = self.closure()
        return self._result.loss

    @override
    def closure(self, *args: Any, **kwargs: Any) -> Result:
        output = self.training_step(*self.arguments)
        if self.after_training_step is not None:
            self.after_training_step()
        if self.clock is not None:
            self.clock.mark(Phase.FORWARD)
        if output is None:
            self.skipped += 1
            lightning_loops.check_skipped_step(self.trainer)
        result = lightning_loops.closure_result(output, self.trainer.accumulate_grad_batches)
        if self.skips_backward:
            return result
        if self.batch_idx % self.window == 0:
            self.clear_gradients()
            if self.clock is not None:
                self.clock.mark(Phase.OPTIMIZER)
        if result.closure_loss is not None:
            self.backward(result.closure_loss)
        return result

    def clear_gradients(self) -> None:
        """Clear the gradients of the last accumulation window, between forward and backward, as Lightning does."""
        counters = self.progress.zero_grad
        counters.increment_ready()
        if self.before_zero_grad is not None:
            self.before_zero_grad(self.optimizer)
        counters.increment_started()
        if self.zero_grad is not None:
            self.zero_grad(self.trainer.current_epoch, self.batch_idx, self.optimizer)
        else:
            self.clear_optimizer()
        counters.increment_completed()

    def backward(self, loss: Tensor) -> None:
        """Propagate the loss back, with the hooks around it."""
        scope, clock = self.scope, self.clock
        outer, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], "backward"
        if not self.plain_backward:
            lightning_loops.call_backward(self.trainer, loss, self.optimizer)
            if clock is not None:
                clock.mark(Phase.BACKWARD)
        else:
            if self.weigh_loss is not None:
                loss = self.weigh_loss(loss)
            if self.strategy_pre_backward is not None:
                self.strategy_pre_backward(loss)
            if self.before_backward is not None:
                self.before_backward(loss)
                if clock is not None:
                    clock.mark(Phase.CALLBACKS)
            self.module_backward(loss)
            if clock is not None:
                clock.mark(Phase.BACKWARD)
            if self.after_backward is not None:
                self.after_backward()
                if clock is not None:
                    clock.mark(Phase.CALLBACKS)
            if self.strategy_post_backward is not None:
                self.strategy_post_backward(loss.detach())
                if clock is not None:
                    clock.mark(Phase.BACKWARD)
        scope[lightning_logging.HOOK_NAME] = outer
