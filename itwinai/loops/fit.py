"""The fit: Lightning's loop, which records at every stop point what is done, so that a run resumes there exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from itwinai.checkpoints.checkpoint_io import ResumeState, pop_resume_state
from itwinai.checkpoints.state import FitPosition, StopPoint
from itwinai.compat import lightning_checkpoints, lightning_dataloaders, lightning_loops, lightning_trainer
from itwinai.data.rng_state import RandomStates, pack_random_states
from itwinai.data.stateful_loader import StreamLoader
from itwinai.loops.anomaly import anomalies_told
from itwinai.loops.deferred_save import DeferredSaves
from itwinai.loops.epoch_state import capture_epoch_state, restore_epoch_state
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.results import LeanResults
from itwinai.loops.resume import restore_rng
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_ALL_DONE = ("epoch", "end of epoch")


@runtime_checkable
class _Epochs(Protocol):
    """What the fit needs of the loop of an epoch."""

    results: LeanResults
    val_loop: LeanEvaluationLoop

    def stop(self) -> None:
        """End the run because of a signal."""


class LeanFitLoop(lightning_loops.FitLoop):
    """Lightning's fit loop, which records what is done.

    Replaces ``trainer.fit_loop``; Lightning's part of checkpoints stays the same.

    Attributes:
        stop_point: what is done; None in the middle of something.
        saved_position: position to save instead of the current one, while the loop does work that only a stopping run
            does, or that a resumed run repeats.
        resumed: our part of the checkpoint that this fit resumes from, until its first epoch begins.
        resumed_loader: the training loaders created for the resume, which may be replaced before they are iterated.
        saves: checkpoints that wait until the hooks are done.
        begun_with: random states when the training loaders were iterated for this epoch.
    """

    stop_point: StopPoint | None = None
    saved_position: FitPosition | None = None
    resumed: ResumeState | None = None
    resumed_loader: Any = None
    begun_with: RandomStates | None = None
    epoch_loop: Any

    def __init__(self, trainer: Trainer, min_epochs: int | None = None, max_epochs: int | None = None) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.saves = DeferredSaves(trainer)

    # ------------------------------------------------------------------------------------- where the fit stands

    def fit_position(self) -> FitPosition | None:
        """Return where this worker stands; None in the middle of something."""
        if self.saved_position is not None:
            return self.saved_position
        return None if self.stop_point is None else self.capture(self.stop_point)

    def capture(self, stop_point: StopPoint) -> FitPosition:
        """Return what this worker needs to resume from here."""
        return FitPosition(
            place=stop_point,
            progress=self.progress(),
            history={"reloaded": self.last_reload, "validation": self.epoch_loop.val_loop.read_history()},
            random=pack_random_states(),
            begun_with=self.begun_with,
            kept=capture_epoch_state(self.trainer, self.epoch_loop.results),
        )

    def hold_position(self, stop_point: StopPoint) -> None:
        """Save the current position in all checkpoints from now on."""
        self.saved_position = self.capture(stop_point)

    def hold_before_stop(self) -> None:
        """Leave work that only a stopping run does out of the saved position."""
        assert self.saved_position is not None
        self.saved_position = replace(self.saved_position, place="iteration", progress=self.progress())

    def mark_done(self, stop_point: StopPoint) -> None:
        """Note that this point is reached, and save the checkpoints that waited for it."""
        self.stop_point = stop_point
        self.saves.flush()

    # --------------------------------------------------------------------------------------------- Lightning's loop

    @override
    def run(self) -> None:
        self.stop_point = self.saved_position = self.resumed = None
        if self.combined_loader is not None:
            # configure_optimizers has asked for trainer.estimated_stepping_batches, before the checkpoint was read.
            self._resumes_with(self.combined_loader)
        callbacks = lightning_trainer.callbacks(self.trainer)
        try:
            with (
                anomalies_told(),
                self.epoch_loop.results.metric_sync.merging(),
                lightning_checkpoints.postponing_saves(callbacks, self.saves.postpone, self.saves.is_pending),
            ):
                try:
                    super().run()
                    if self.max_batches == 0 and self.trainer.limit_train_batches != 0:
                        warn_user("Nothing was trained: the training loader has no batches. Look at its dataset.")
                except BaseException:
                    if self.trainer.world_size == 1:  # others may not have come so far, and saving takes them all
                        self.saves.flush()
                    raise
        finally:
            self.saves.forget()

    @override
    def loaders_made(self, loader: Any) -> None:
        if not self._resumes_with(loader):
            self.begun_with = pack_random_states()

    def _resumes_with(self, loader: Any) -> bool:
        """Let these loaders wait if a checkpoint was read whose position they are to take; return whether it was."""
        if self.resumed is not None or (resumed := pop_resume_state(self.trainer)) is None:
            return False
        self.resumed = resumed
        self.resumed_loader = loader
        lightning_dataloaders.iterate_later(loader)  # what is drawn now is not what comes next
        stateful = [one for one in loader.flattened if lightning_dataloaders.is_stateful(one)]
        if resumed.section.place in _ALL_DONE and all(isinstance(one, StreamLoader) for one in stateful):
            self.load_loaders()
        return True

    @override
    def reset(self) -> None:
        section = None if self.resumed is None else self.resumed.section
        if section is not None and section.place is not None:
            self._restore(section.place, section.kept or [], section.history or {})
        super().reset()

    def _restore(self, place: StopPoint, kept: list[Any], history: Mapping[str, Any]) -> None:
        """Let all be as it was where the checkpoint was written."""
        epochs: _Epochs = self.epoch_loop
        self.last_reload = history["reloaded"]
        epochs.val_loop.history = history["validation"]
        in_epoch = place not in _ALL_DONE
        restore_epoch_state(self.trainer, epochs.results, kept, in_epoch)
        if in_epoch:
            return
        lightning_trainer.forget_loading(self)
        if place == "end of epoch":
            if lightning_loops.is_epoch_over(self.epoch_loop):
                self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            self.epoch_progress.increment_completed()

    @override
    def on_run_end(self) -> None:
        self.saves.collects = True
        super().on_run_end()
        self.saves.flush()

    @override
    def on_advance_start(self) -> None:
        self.stop_point = self.saved_position = None
        if self.resumed is not None and self.resumed.section.place in _ALL_DONE:
            restore_rng(self.trainer, self.resumed.section)
        super().on_advance_start()

    @override
    def on_advance_end(self) -> None:
        over = lightning_loops.is_epoch_over(self.epoch_loop)
        if (
            self.saved_position is None
            and not over
            and (self.trainer.should_stop or lightning_loops.is_training_done(self.epoch_loop))
        ):
            self.hold_position("iteration")
        completed = self.epoch_progress.total.completed
        self.stop_point = "end of epoch"
        self.saves.collects = True
        try:
            super().on_advance_end()
        except SIGTERMException:
            if self.epoch_progress.total.completed == completed:  # raised by a hook
                raise
            self._end_epoch(over)
            self.epoch_loop.stop()
        self._end_epoch(over)

    def _end_epoch(self, over: bool) -> None:
        # Then the last batch was followed by a validation that only a stop brings.
        if over and self.saved_position is not None:
            self.saved_position = replace(self.capture("epoch"), random=self.saved_position.random)
        self.mark_done("epoch")
