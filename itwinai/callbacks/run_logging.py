"""Logs what every run should log: its configuration, its speed, and the trained model."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from itwinai.collectives import gather_of
from itwinai.compat import lightning_logging, lightning_trainer
from itwinai.compat import torch as compat_torch
from itwinai.data.batch_size import samples_in
from itwinai.errors import ConfigurationError
from itwinai.loggers.adapters import LoggerAdapter, adapters_of
from itwinai.loggers.log_step import is_log_step, log_step
from itwinai.loggers.metric_callback import ReportingCallback
from itwinai.profiling.step_timer import Phase, StepClock, percentile
from itwinai.reporting.metric_plots import figures_of
from itwinai.run_info.config import config_of
from itwinai.run_info.redaction import without_secrets
from itwinai.run_info.run import RunFacts, collect_facts
from itwinai.warn import warn_user


class LoggingCallback(ReportingCallback):
    """Log configuration, speed, learning rates and gradient norm to all loggers of the trainer.

    At the start: the resolved configuration, the git commit and whether there are changes beside it, versions, the
    launch plan, seeds; without secrets. With the values of the module, every ``log_every_n_steps``: learning rates,
    the norm of the gradients, samples per second, the duration of steps, the share of it that waits for data.

    Args:
        gradient_norm: log the norm of all gradients, before they are clipped. It is computed at log steps only.
        per_rank: log speed and values of each worker by itself as well: in MLflow as nested runs, in W&B as a group,
            otherwise in a folder of its own. Workers gather them at log steps, which costs a small exchange.
        figures: at the end of each epoch of a fit, log the plots of the module's torchmetrics, and the figures that its
            method ``epoch_figures`` returns by name, if it has one. Metrics whose attribute begins with ``val_`` or
            ``test_`` are drawn in that stage only. ``trainer.validate`` and ``trainer.test`` log no figures.
        model: keep the trained module with the run: as an MLflow model with its signature, as a W&B artifact.

    Attributes:
        facts: what was logged at the start, on rank 0; None before.

    Raises:
        ConfigurationError: at the start of a fit, the trainer has no logger.
    """

    def __init__(
        self, *, gradient_norm: bool = True, per_rank: bool = False, figures: bool = False, model: bool = False
    ) -> None:
        self.gradient_norm = gradient_norm
        self.per_rank = per_rank
        self.figures = figures
        self.model = model
        self.facts: RunFacts | None = None
        self.step_clock: StepClock | None = None
        self._adapters: list[LoggerAdapter] = []
        self._logged = (0, 0, 0, 0, 0)  # what the clock said at the last log step
        self._norm: Tensor | None = None
        self._clips = True
        self._parameters: list[Tensor] = []
        self._example: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_adapters": [], "step_clock": None, "_norm": None, "_parameters": [], "_example": None}

    # ---------------------------------------------------------------------------------------------- start, end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what the loggers accept."""
        if stage != "fit":
            return
        self.facts = None
        if not trainer.loggers:
            raise ConfigurationError(
                "LoggingCallback needs a logger, but the trainer has none. Add one (--logger csv, "
                "ItwinaiTrainer(logger='csv')), or remove the callback."
            )
        if trainer.is_global_zero:
            self._adapters = adapters_of(trainer)
            self._say_what_is_left_out(trainer)
        self._logged = (0, 0, 0, 0, 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the run is."""
        if not trainer.is_global_zero:
            return
        self.facts = collect_facts(trainer)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "resolved-config.yaml")
            path.write_text(config_of(trainer))
            for adapter in self._adapters:
                adapter.facts(trainer, self.facts)
                adapter.file(path)
                if self.per_rank:
                    adapter.open_ranks(trainer.world_size)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the module, and end the runs of single workers."""
        if self.model and trainer.is_global_zero:
            self._keep_model(pl_module)
        self._finish("success")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the runs of single workers."""
        self._finish("failed")

    def _finish(self, status: str) -> None:
        for adapter in self._adapters:
            adapter.finish(status)
        self._adapters = []
        self._parameters = []
        self._example = None

    def _say_what_is_left_out(self, trainer: Trainer) -> None:
        asked = {"rank_metrics": self.per_rank, "figure": self.figures, "model": self.model}
        for what in [name for name, on in asked.items() if on]:
            if not any(what in adapter.takes for adapter in self._adapters):
                kinds = ", ".join(type(logger).__name__ for logger in trainer.loggers)
                warn_user(f"LoggingCallback: none of this run's loggers ({kinds}) can store {_WORDS[what]}.")

    # ------------------------------------------------------------------------------------------------- steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether gradients are clipped."""
        self._clips = trainer.gradient_clip_val is not None or any(
            getattr(type(pl_module), hook) is not getattr(LightningModule, hook)
            for hook in ("configure_gradient_clipping", "clip_gradients")
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the module's parameters again: other callbacks may have added some."""
        self._parameters = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Compute the norm of the gradients before they are clipped, if it is logged in this step."""
        if self.gradient_norm and is_log_step(trainer):
            self._norm = self._gradient_norm(trainer)

    def skips_hook(self, hook: str) -> bool:
        """Return whether a hook need not be called: without clipping, gradients are the same after the step."""
        unclipped = hook == "on_before_optimizer_step" and not (self.gradient_norm and self._clips)
        return unclipped or super().skips_hook(hook)

    def values_at_log_step(self, trainer: Trainer, batch: Any) -> dict[str, float]:
        """Return learning rates, gradient norm and speed."""
        if self._example is None and self.model:
            self._example = _input_of(trainer.lightning_module, batch)
        values = self._speed(batch, trainer.world_size)
        if self.per_rank:
            self._log_ranks(trainer, values)
        if (norm := self._take_norm(trainer)) is not None:
            values["gradient_norm"] = norm
        return values | _learning_rates(trainer)

    def _take_norm(self, trainer: Trainer) -> float | None:
        if not self.gradient_norm:
            return None
        norm, self._norm = self._norm, None
        if norm is None and not self._clips:
            norm = self._gradient_norm(trainer)
        if norm is not None:
            return float(norm)
        of_engine = getattr(trainer.strategy, "last_gradient_norm", None)
        return None if of_engine is None else of_engine()

    def _gradient_norm(self, trainer: Trainer) -> Tensor | None:
        """Return the norm of the averaged gradients, if the workers have them."""
        ask = getattr(trainer.strategy, "gradients", None)
        if ask is None:
            if not self._parameters:  # once per epoch: to walk through a module takes longer than the norm
                self._parameters = list(trainer.lightning_module.parameters())
            gradients = [grad for p in self._parameters if (grad := p.grad) is not None]
        else:
            gradients = ask()
        return compat_torch.total_norm(gradients) if gradients else None

    def _speed(self, batch: Any, workers: int) -> dict[str, float]:
        """Return the speed since the last log step."""
        clock = self.step_clock
        if clock is None:
            return {}
        before = self._logged
        self._logged = now = _sums(clock)
        steps, step_time, split_time, waited, at_start = (new - old for new, old in zip(now, before, strict=True))
        if not steps:
            return {}
        seconds = step_time / steps / 1e9
        durations = sorted(clock.last(steps))
        speed = {
            "speed/step_ms": seconds * 1e3,
            "speed/step_ms_p50": percentile(durations, 50) / 1e6,
            "speed/step_ms_p95": percentile(durations, 95) / 1e6,
        }
        if split_time:
            # All waits for the first batch of an epoch are known, and of the others those of the steps that are split.
            speed["speed/data_wait_share"] = (waited / split_time * (step_time - at_start) + at_start) / step_time
        if (size := samples_in(batch)) is not None:
            speed["speed/samples_per_second"] = size * workers / seconds
        return speed

    def _log_ranks(self, trainer: Trainer, speed: dict[str, float]) -> None:
        gathered = gather_of(trainer.strategy)({**lightning_logging.step_values(trainer), **speed})
        for adapter in self._adapters:
            for rank, metrics in enumerate(gathered):
                adapter.rank_metrics(rank, metrics, log_step(trainer))

    # ------------------------------------------------------------------------------------------------- figures

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the module's metrics."""
        self._log_figures(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the module's metrics."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._log_figures(trainer, pl_module, "validation")

    def _log_figures(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.figures:
            return
        # On all workers: to compute a metric takes them all. What is computed here is not computed again later.
        for name, figure in figures_of(pl_module, stage):
            for adapter in self._adapters:
                adapter.figure(name, figure, log_step(trainer))
            import matplotlib.pyplot as plt  # loaded by what has drawn the figure

            plt.close(figure)  # pyplot keeps all figures otherwise

    # --------------------------------------------------------------------------------------------------- model

    def _keep_model(self, module: LightningModule) -> None:
        if self._example is None:  # there was no log step
            self._example = getattr(module, "example_input_array", None)
        try:
            whole = copy.deepcopy(module).cpu()
            if whole.hparams:
                lightning_trainer.replace_hyperparameters(whole, without_secrets(dict(whole.hparams)))
            for adapter in self._adapters:
                adapter.model(whole, self._example)
        except Exception as error:  # copying and pickling run the user's own code, and the training has ended well
            warn_user(
                f"LoggingCallback: the trained module is not kept with the run, since it cannot be copied, pickled or "
                f"sent: {type(error).__name__}: {error}. Its weights are in the checkpoints."
            )


def _sums(clock: StepClock) -> tuple[int, int, int, int, int]:
    """Return what a clock has summed up of that which is logged."""
    return clock.steps, clock.step_time, clock.split_time, clock.spent[Phase.DATA], clock.waited_at_start


_WORDS = {"rank_metrics": "values of single workers", "figure": "figures", "model": "models"}


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    """Return the learning rate of each parameter group, named by optimizer and group where there are several."""
    rates: dict[str, float] = {}
    for index, optimizer in enumerate(trainer.optimizers):
        one = "lr" if len(trainer.optimizers) == 1 else f"lr/{index}-{type(optimizer).__name__}"
        groups = optimizer.param_groups
        for number, group in enumerate(groups):
            rates[one if len(groups) == 1 else f"{one}/group{number}"] = float(group["lr"])
    return rates


def _input_of(module: LightningModule, batch: Any) -> Any:
    """Return input for the module's ``forward``: its own example, or the first part of a batch."""
    if getattr(module, "example_input_array", None) is not None:
        return module.example_input_array
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return (
        compat_torch.plain_tensor(first)[:2].detach().cpu() if isinstance(first, Tensor) and first.numel() > 0 else None
    )
