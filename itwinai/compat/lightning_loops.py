"""Lightning's loops, with their private attributes and methods under public names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops import _EvaluationLoop, _FitLoop, _Loop, _PredictionLoop
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.progress import _OptimizerProgress
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from itwinai.warn import warn_user

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lightning.pytorch import LightningModule, Trainer


def replace_zero_grad(strategy: Strategy, zero_grad: Callable[..., None]) -> None:
    """Let a function of ours clear the gradients of a strategy's one optimizer, and of Lightning's wrapper of it."""
    (optimizer,), (wrapper,) = strategy.optimizers, strategy._lightning_optimizers
    vars(optimizer)["zero_grad"] = vars(wrapper)["zero_grad"] = zero_grad


def call_before_step(precision: Precision, module: LightningModule, optimizer: Any) -> None:
    """Run the hooks before the optimizer's step, and clip the gradients."""
    precision._after_closure(module, optimizer)


# The releases of Lightning whose loops ours were compared with, hook by hook and bit by bit.
VERIFIED_LOOPS = ("2.6.6",)


class TrainingEpochLoop(_TrainingEpochLoop):
    """Lightning's training epoch loop, which leaves it to a public method whether SIGTERM ends the run here."""

    def stop_if_agreed(self) -> None:
        """Raise `SIGTERMException` if the workers have agreed to stop before this batch."""
        raise NotImplementedError

    def check_monitored(self, key: str, value: float) -> None:
        """Called with the value that a plateau scheduler is about to read."""

    def _broadcast_sigterm_tensor(self) -> None:
        self.stop_if_agreed()

    def _get_monitor_value(self, key: str) -> Any:
        value = super()._get_monitor_value(key)
        self.check_monitored(key, float("nan") if value is None else float(value))
        return value


DataFetcher = _DataFetcher

DataLoaderIterFetcher = _DataLoaderIterDataFetcher

StockEvaluationLoop = _EvaluationLoop


class EvaluationLoop(_EvaluationLoop):
    """Lightning's evaluation loop, which leaves each batch to a public method."""

    def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        """Run the step and its hooks on one batch."""
        super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)

    def _evaluation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        self.evaluate_batch(batch, batch_idx, dataloader_idx, dataloader_iter)

    def end_loader(self) -> None:
        """Called on all workers after the last batch of a loader, before any hook."""

    def _store_dataloader_outputs(self) -> None:
        self.end_loader()
        super()._store_dataloader_outputs()

    def begin_end(self) -> None:
        """Note that the hooks at the end of an evaluation are about to be called."""

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.begin_end()
        super()._on_evaluation_end(*args, **kwargs)

    @property
    def loaders(self) -> list[Any]:
        """The loaders, once they are created."""
        return [] if self._combined_loader is None else list(self._combined_loader.flattened)

    def read_history(self) -> dict[str, Any]:
        """Return the history of a loop that Lightning does not save."""
        return {"reloaded": self._last_val_dl_reload_epoch, "seen": dict(self._seen_batches_per_dataloader)}

    def write_history(self, history: Mapping[str, Any]) -> None:
        """Set what `read_history` returned, once the loaders are created."""
        self._last_val_dl_reload_epoch = history["reloaded"]
        self._seen_batches_per_dataloader.update(history["seen"])


class PredictionLoop(_PredictionLoop):
    """Lightning's prediction loop, which leaves each batch to a public method."""

    def predict_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        """Run the step and its hooks on one batch."""
        super()._predict_step(batch, batch_idx, dataloader_idx, dataloader_iter)

    def _predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        self.predict_batch(batch, batch_idx, dataloader_idx, dataloader_iter)

    @property
    def loaders(self) -> list[Any]:
        """The loaders, once they are created."""
        return [] if self._combined_loader is None else list(self._combined_loader.flattened)

    @property
    def return_predictions(self) -> bool:
        """Whether the predictions are returned."""
        return super().return_predictions

    @return_predictions.setter
    def return_predictions(self, value: bool | None) -> None:
        value = self.returns_by_default() if value is None else value
        _PredictionLoop.return_predictions.fset(self, value)  # type: ignore[attr-defined]

    def returns_by_default(self) -> bool | None:
        """Return whether predictions are returned unless the user says so; None leaves it to Lightning."""
        return None

    def note_for_writers(self, batch_idx: int, dataloader_idx: int) -> bool:
        """Note the indices of a batch for prediction writers; return whether one wants all batches at the end."""
        return self._store_data_for_prediction_writer(batch_idx, dataloader_idx)

    def keep(self, prediction: Any, dataloader_idx: int) -> None:
        """Keep the prediction of a batch, on the CPU."""
        is_there = type(prediction) is Tensor and prediction.device == _CPU
        self._predictions[dataloader_idx].append(prediction if is_there else move_data_to_device(prediction, _CPU))

    def warn_of_none(self) -> None:
        """Warn, once, that ``predict_step`` returns nothing."""
        self._warning_cache.warn("predict_step returned None; ignore this warning if it is on purpose.")


_CPU = torch.device("cpu")


def replace_prediction_loop(trainer: Trainer, loop_class: type[_PredictionLoop]) -> None:
    """Let another class run ``predict``."""
    trainer.predict_loop = loop_class(trainer, inference_mode=trainer.predict_loop.inference_mode)


class FitLoop(_FitLoop):
    """Lightning's fit loop, with its private attributes and methods under public names."""

    def loaders_made(self, loader: CombinedLoader) -> None:
        """Called with the training loaders before they are iterated."""

    def _load_combined_loader_states(self) -> None:
        super()._load_combined_loader_states()
        assert self._combined_loader is not None
        self.loaders_made(self._combined_loader)

    def load_loaders(self) -> None:
        """Restore the states of loaders, which Lightning does not do at the end of an epoch."""
        assert self._combined_loader is not None
        self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
        self._combined_loader_states_to_load = []

    @property
    def combined_loader(self) -> CombinedLoader | None:
        """The training loaders, once they are created."""
        return self._combined_loader

    @property
    def last_reload(self) -> float:
        """The epoch in which the training loaders were created."""
        return self._last_train_dl_reload_epoch

    @last_reload.setter
    def last_reload(self, epoch: float) -> None:
        self._last_train_dl_reload_epoch = epoch

    def progress(self) -> dict[str, Any]:
        """Return the progress of this loop and of those in it, without the states of loaders."""
        loader, self._combined_loader = self._combined_loader, None
        try:
            return self.state_dict()
        finally:
            self._combined_loader = loader

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Restore what `progress` returned."""
        states = self._combined_loader_states_to_load
        self.load_state_dict(progress)
        self._combined_loader_states_to_load = states


def replace_fit_loop(trainer: Trainer, loop_class: type[_FitLoop]) -> None:
    """Let another class run the trainer's fits, with the same loop of epochs."""
    stock = trainer.fit_loop
    trainer.fit_loop = loop_class(trainer, min_epochs=stock.min_epochs, max_epochs=stock.max_epochs)
    trainer.fit_loop.epoch_loop = stock.epoch_loop


def leave_fetches_out_of_profile(loop: _Loop, data_fetcher: _DataFetcher | None = None) -> None:
    """Let a loop's fetcher not tell the profiler of every batch, if the profiler is one that does nothing.

    Args:
        loop: a loop that has just begun its run.
        data_fetcher: its fetcher, unless it is a loop of evaluation or prediction, which have their own.
    """
    fetcher = loop._data_fetcher if isinstance(loop, (_EvaluationLoop, _PredictionLoop)) else data_fetcher
    profiler = loop.trainer.profiler  # type: ignore[attr-defined]
    if fetcher is not None and type(profiler) is PassThroughProfiler:
        fetcher._start_profiler = fetcher._stop_profiler = _do_nothing


def _do_nothing() -> None:
    return None


def evaluation_options(loop: _EvaluationLoop) -> dict[str, Any]:
    """Return the arguments that an evaluation loop was made with."""
    return {
        "trainer_fn": loop._trainer_fn,
        "stage": loop._stage,
        "verbose": loop.verbose,
        "inference_mode": loop.inference_mode,
    }


def evaluates_in_sequence(loop: _EvaluationLoop) -> bool:
    """Return whether each batch of an evaluation comes from one loader."""
    return loop._is_sequential


def evaluates_several_loaders(loop: _EvaluationLoop) -> bool:
    """Return whether an evaluation goes through several loaders, one after the other."""
    return loop._is_sequential and loop.num_dataloaders > 1


def evaluation_loaders(loop: _EvaluationLoop) -> list[Any]:
    """Return the loaders of an evaluation, as they are iterated."""
    combined = loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def count_evaluated_batch(loop: _EvaluationLoop, dataloader_idx: int) -> int:
    """Count a batch of a loader; return how many came before it, which is the step that loggers are given."""
    loop._has_run = True
    before = loop._seen_batches_per_dataloader[dataloader_idx]
    loop._seen_batches_per_dataloader[dataloader_idx] = before + 1
    return before


def replace_evaluation_loops(trainer: Trainer, make: Callable[[Any], _EvaluationLoop]) -> None:
    """Let other loops run ``validate`` and ``test``."""
    trainer.validate_loop = make(trainer.validate_loop)
    trainer.test_loop = make(trainer.test_loop)


def optimizer_progress(trainer: Trainer) -> _OptimizerProgress:
    """Return how often the optimizer of automatic optimization has stepped and was cleared."""
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer


def lightning_optimizer(strategy: Strategy) -> LightningOptimizer:
    """Return Lightning's wrapper of the one optimizer of automatic optimization."""
    return strategy._lightning_optimizers[0]


def takes_batch_idx(step: Callable[..., Any]) -> bool:
    """Return whether a step takes the index of the batch, under any name."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def transfer_batch(trainer: Trainer, batch: Any, dataloader_idx: int) -> Any:
    """Convert a batch and bring it to the device, by all hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=dataloader_idx)


def only_steps_optimizer(strategy: Strategy) -> bool:
    """Return whether a strategy's ``optimizer_step`` does nothing itself."""
    if "optimizer_step" in vars(strategy):
        return False
    if type(strategy).optimizer_step is Strategy.optimizer_step:
        return True
    if type(strategy).optimizer_step is not LightningDDPStrategy.optimizer_step:
        return False
    assert isinstance(strategy, LightningDDPStrategy)
    return strategy._model_averager is None


def without_gradient_sync(strategy: Strategy) -> AbstractContextManager[None]:
    """Return a context in which backward does not exchange gradients."""
    return _block_parallel_sync_behavior(strategy, block=True)


def call_optimizer_step(trainer: Trainer, batch_idx: int, optimizer: LightningOptimizer, closure: Any) -> None:
    """Step through all hooks of Lightning."""
    call._call_lightning_module_hook(trainer, "optimizer_step", trainer.current_epoch, batch_idx, optimizer, closure)


def skips_backward(trainer: Trainer) -> bool:
    """Return whether an epoch only runs forward, as the one that renews BatchNorm's statistics for averaged weights."""
    return trainer.fit_loop._skip_backward


def call_backward(trainer: Trainer, loss: Tensor, optimizer: Any) -> None:
    """Propagate back through all hooks of Lightning."""
    call._call_strategy_hook(trainer, "backward", loss, optimizer)


def clip_gradients(trainer: Trainer, optimizer: Any) -> None:
    """Clip the gradients as the trainer is told to."""
    trainer.precision_plugin._clip_gradients(
        trainer.lightning_module,
        optimizer,
        trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )


def closure_result(output: Any, window: int) -> ClosureResult:
    """Return what a training step returned as Lightning passes it on.

    Args:
        output: a loss, a dictionary with one, or None.
        window: number of batches whose gradients are accumulated.
    """
    if window == 1 and type(output) is Tensor:  # a loss divided by one, without the division
        return ClosureResult(output)
    return ClosureResult.from_training_step_output(output, window)


def check_skipped_step(trainer: Trainer) -> None:
    """Warn, once, of a training step that returned None; with several workers it is an error, as in Lightning."""
    if trainer.world_size > 1:
        raise RuntimeError(
            "`training_step` returned None. With several workers the others would wait for the gradients for "
            "ever: return a loss in every step, for example one multiplied by zero."
        )
    message = "`training_step` returned `None`: this batch changes no weights. Is `return loss` missing at its end?"
    if message not in Closure.warning_cache:
        Closure.warning_cache.add(message)
        warn_user(message)


def optimize_manually(loop: _TrainingEpochLoop, batch: Any, batch_idx: int) -> Any:
    """Run a training step of manual optimization."""
    kwargs = loop._build_kwargs(OrderedDict(), batch, batch_idx)
    return loop.manual_optimization.run(kwargs)


def warn_of_none_batch(loop: _TrainingEpochLoop) -> None:
    """Warn, once, that the loader yields None instead of a batch."""
    loop._warning_cache.warn("train_dataloader yielded None: no training step is run for it.")


def skips_next_validation(loop: _TrainingEpochLoop) -> bool:
    """Return whether a loop that was restarted has validated before its checkpoint was written."""
    return loop._skip_next_val


def validates_now(loop: _TrainingEpochLoop, data_fetcher: _DataFetcher) -> bool:
    """Return whether validation is due after the batch in work."""
    return loop._skip_next_val or loop._should_check_val_fx(data_fetcher)


def begun_batches(loop: _TrainingEpochLoop) -> int:
    """Return the number of batches of the epoch whose training step has begun; those that a hook skips do not count."""
    return loop.batch_progress.current.started  # type: ignore[attr-defined]


def processed_epochs(loop: _FitLoop) -> int:
    """Return the number of epochs that a fit, or the one that it continues with, has trained."""
    return loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def count_stepped_batch(loop: _TrainingEpochLoop) -> None:
    """Count a batch after which the optimizer has stepped; loggers number their steps by it."""
    loop._batches_that_stepped += 1


def stepped_batches(loop: _TrainingEpochLoop) -> int:
    """Return the number of batches after which the optimizer has stepped."""
    return loop._batches_that_stepped


def iterates_again(loop: _TrainingEpochLoop) -> bool:
    """Return whether an epoch that begins iterates its loaders; the first finds them iterated."""
    trainer = loop.trainer
    return trainer.current_epoch > 0 and not trainer.fit_loop.is_resuming and not loop.restarting


def is_validation_due(loop: _TrainingEpochLoop, data_fetcher: _DataFetcher) -> bool:
    """Return whether the batch in work would be followed by validation also if the run did not stop here."""
    trainer = loop.trainer
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return loop._should_check_val_fx(data_fetcher)
    finally:
        trainer.should_stop = stops


def skip_next_validation(loop: _TrainingEpochLoop) -> None:
    """Leave out the validation that may be due after the batch in work."""
    loop._skip_next_val = True


def is_epoch_over(loop: _TrainingEpochLoop) -> bool:
    """Return whether the batches of the epoch are used up."""
    return loop._num_ready_batches_reached()


def flush_loggers(loop: _TrainingEpochLoop) -> None:
    """Let the loggers write what they hold, when the run is about to stop."""
    loop._save_loggers_on_train_batch_end()


def can_stop_early(trainer: Trainer) -> bool:
    """Return whether a fit may end as soon as ``should_stop`` is set: it has had its least epochs and steps."""
    return trainer.fit_loop._can_stop_early


def is_training_done(loop: _TrainingEpochLoop) -> bool:
    """Return whether the epoch's batches, or the run's steps, are used up."""
    return loop._is_training_done


def replace_training_epoch_loop(trainer: Trainer, loop_class: type[_TrainingEpochLoop]) -> None:
    """Let another class run the trainer's training epochs."""
    stock = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = loop_class(trainer, min_steps=stock.min_steps, max_steps=stock.max_steps)


def batches_done(trainer: Trainer) -> tuple[int, int]:
    """Return how many batches this worker has trained with: in this epoch, and in all.

    Those count whose optimizer step is done: in a checkpoint that was written in the hooks after a batch, that batch
    is not completed.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.processed, progress.total.processed  # type: ignore[attr-defined]


def is_epoch_begun(trainer: Trainer) -> bool:
    """Return whether a fit is within an epoch, or was when the checkpoint was written that it resumes from."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.started > progress.processed


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether there are gradients that wait for a later batch before the optimizer steps."""
    loop = trainer.fit_loop.epoch_loop
    if not trainer.lightning_module.automatic_optimization or not is_epoch_begun(trainer):
        return False
    batches = loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches != 0 and not loop._num_ready_batches_reached()
