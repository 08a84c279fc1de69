"""Prediction: Lightning's loop, running a plan of what its batches really have to do."""

from __future__ import annotations

import math
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from itwinai.compat import lightning_dataloaders, lightning_loops, lightning_trainer
from itwinai.data.weights import Weighing, sampler_of
from itwinai.drawn import Done, Drawn
from itwinai.interfaces import WritesPredictions
from itwinai.loops.batch_size import fastest_batch_size, set_batch_size
from itwinai.loops.hook_plan import BatchTransfer, ProfilerSpans, collect_hook, is_overridden, step_call
from itwinai.tracebacks import add_note


class PredictionPlan:
    """What the batches of one prediction call.

    Args:
        loop: the loop, everything set up.
    """

    def __init__(self, loop: LeanPredictionLoop) -> None:
        trainer = loop.trainer
        spans = ProfilerSpans(trainer)
        self.callbacks = list(lightning_trainer.callbacks(trainer))
        self.transfer = BatchTransfer(trainer, spans)
        self.on_batch_start = collect_hook("on_predict_batch_start", trainer, spans)
        self.step = step_call("predict_step", "predict_step_context", trainer, spans)
        self.takes_batch_idx = lightning_loops.takes_batch_idx(trainer.lightning_module.predict_step)
        self.on_batch_end = collect_hook("on_predict_batch_end", trainer, spans)
        self.loaders = loop.loaders
        self.several_loaders = len(self.loaders) > 1
        self.tells_drawn = any(isinstance(one, WritesPredictions) for one in self.callbacks)
        self.has_writers = any(
            isinstance(one, BasePredictionWriter) and not isinstance(one, WritesPredictions) for one in self.callbacks
        )
        self.repeats: list[Weighing | None] = [
            sampler if getattr(getattr(sampler, "dealt", sampler), "even_batches", False) else None
            for sampler in map(sampler_of, self.loaders)
        ]


class LeanPredictionLoop(lightning_loops.PredictionLoop):
    """Lightning's prediction loop, which runs a plan, and leaves out what an interrupted prediction has done.

    Attributes:
        drawn: the batch in work; None where its loader does not tell.
    """

    plan: PredictionPlan | None = None
    drawn: Drawn | None = None

    @property
    def _writers(self) -> list[WritesPredictions]:
        return [one for one in lightning_trainer.callbacks(self.trainer) if isinstance(one, WritesPredictions)]

    @property
    def skip(self) -> bool:
        """Whether there is nothing to do: no batch, and no file to write that has none."""
        return not self._writers and super().skip

    @override
    def returns_by_default(self) -> bool | None:
        return False if self._writers else None

    @override
    def run(self) -> Any:
        try:
            return super().run()
        finally:
            self.plan = self.drawn = None  # they refer to half of the run

    @override
    def setup_data(self) -> None:
        super().setup_data()
        sizes = [writer.batch_size for writer in self._writers if writer.batch_size is not None]
        is_read = any(isinstance(one, BasePredictionWriter) for one in lightning_trainer.callbacks(self.trainer))
        for index, loader in enumerate(self.loaders):
            lightning_dataloaders.note_indices(loader, is_read or bool(self._writers))
            if sizes:
                size = fastest_batch_size(self.trainer, loader, index) if sizes[0] == "auto" else sizes[0]
                if size is not None:
                    self.max_batches[index] = set_batch_size(loader, size, self.max_batches[index])
        if self._writers and self.loaders:
            self._leave_out_what_is_done()

    def _leave_out_what_is_done(self) -> None:
        """Let each loader give only what no writer has yet."""
        workers = self.trainer.world_size
        samples = [sized_len(getattr(loader, "dataset", None)) for loader in self.loaders]
        limits = [
            None if length is None or number >= length else int(number) * workers
            for length, number in zip(map(sized_len, self.loaders), self.max_batches, strict=True)
        ]
        begun = [writer.begin_predictions(self.trainer, samples, limits) for writer in self._writers]
        for index, loader in enumerate(self.loaders):
            done = [of_writer[index] for of_writer in begun]
            if not all(len(numbers) for numbers, _ in done):
                continue
            numbers = done[0][0] if len(done) == 1 else _common([one for one, _ in done])
            lightning_dataloaders.leave_out(loader, numbers, done[0][1])
            remaining = getattr(sampler_of(loader), "remaining_batches", _unknown)()
            self.max_batches[index] = math.inf if remaining is None else remaining

    @override
    def on_run_start(self) -> None:
        super().on_run_start()
        self.plan = PredictionPlan(self)
        lightning_loops.leave_fetches_out_of_profile(self)

    @override
    def predict_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        plan = self.plan
        if plan is None or dataloader_iter is not None:
            super().predict_batch(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        if lightning_trainer.callbacks(self.trainer) != plan.callbacks:
            plan = self.plan = PredictionPlan(self)
        batch = plan.transfer(batch, dataloader_idx)
        which = (dataloader_idx,) if plan.several_loaders else ()
        sampler = plan.repeats[dataloader_idx]
        if sampler is not None and sampler.weight_of(batch_idx) == 0.0:
            # A batch of another worker: this one has none, and takes part in what all have to call.
            plan.step(batch, batch_idx, *which) if plan.takes_batch_idx else plan.step(batch, *which)
            return
        progress = self.batch_progress
        progress.increment_ready()
        if plan.tells_drawn:
            self.drawn = lightning_dataloaders.drawn_batch(plan.loaders[dataloader_idx], batch_idx)
        keeps = self.return_predictions
        if plan.has_writers:
            keeps |= self.note_for_writers(batch_idx, dataloader_idx)

        if plan.on_batch_start is not None:
            plan.on_batch_start(batch, batch_idx, *which)
        progress.increment_started()
        try:
            output = plan.step(batch, batch_idx, *which) if plan.takes_batch_idx else plan.step(batch, *which)
        except Exception as error:
            self._explain(error, batch)
            raise
        if output is None:
            self.warn_of_none()
        progress.increment_processed()
        if plan.on_batch_end is not None:
            plan.on_batch_end(output, batch, batch_idx, *which)
        progress.increment_completed()
        if keeps:
            self.keep(output, dataloader_idx)

    def _explain(self, error: Exception, batch: Any) -> None:
        """Add to an error that Lightning's own ``predict_step`` is to blame, if it is."""
        module = self.trainer.lightning_module
        if isinstance(batch, (list, tuple)) and not is_overridden(module, "predict_step", LightningModule):
            note = (
                f"itwinai: {type(module).__name__} has no predict_step, and Lightning's calls forward with the whole "
                f"batch, a {type(batch).__name__} of {len(batch)}. Write one that uses the inputs alone:\n"
                "    def predict_step(self, batch, batch_idx):\n        return self(batch[0])"
            )
            add_note(error, note)


def _common(done: list[Done]) -> Done:
    """Return what all have done."""
    return Done([number for number in done[0].numbers.tolist() if all(number in one for one in done[1:])])


def _unknown() -> None:
    return None
