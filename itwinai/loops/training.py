"""The training epoch: Lightning's loop, running a plan of the work that its steps really have."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO, ResumeState
from itwinai.checkpoints.naming import EXTENSION, PREEMPTED
from itwinai.checkpoints.state import StopPoint, training_samplers
from itwinai.compat import (
    lightning_checkpoints,
    lightning_dataloaders,
    lightning_logging,
    lightning_loops,
    lightning_signals,
    lightning_trainer,
)
from itwinai.data.rng_state import pack_random_states
from itwinai.data.weights import StepWeights
from itwinai.interfaces import Abortable, ComparesRanks, Coordinated, LogStepReporter, Preemptible
from itwinai.launchers.base import stopped_by
from itwinai.loggers.log_step import is_log_step
from itwinai.loops.compiled.optimization import CompiledGraphs
from itwinai.loops.coordinated_stop import StopAgreement
from itwinai.loops.desync_detection import MissingWorkers
from itwinai.loops.epoch_end_sync import EpochEnds, EpochPosition
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.fast_log import quick_log
from itwinai.loops.fit import LeanFitLoop
from itwinai.loops.hook_plan import BatchTransfer, InScope, ProfilerSpans, collect_hook, is_overridden
from itwinai.loops.monitored_metrics import check_names, check_scheduler
from itwinai.loops.optimization import LeanOptimization
from itwinai.loops.results import LeanResults
from itwinai.loops.resume import iterate_in_epoch, restore_loader_rng, restore_rng
from itwinai.loops.step_timing import clock_for
from itwinai.loops.store_monitor import StoreCheck, StoreMonitor
from itwinai.profiling.step_timer import Phase, StepClock

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

STOPPED = "trainer.should_stop was set there"


class TrainingPlan:
    """What the training steps of one epoch call.

    Args:
        loop: the epoch's loop, everything set up.
    """

    def __init__(self, loop: LeanTrainingEpochLoop) -> None:
        trainer = loop.trainer
        module, strategy = trainer.lightning_module, trainer.strategy
        spans = ProfilerSpans(trainer)
        self.callbacks = list(lightning_trainer.callbacks(trainer))
        self.transfer = BatchTransfer(trainer, spans)
        self.on_train_batch_start = collect_hook("on_train_batch_start", trainer, spans)
        self.strategy_batch_start: InScope | None = None
        if spans.profiler is not None or is_overridden(strategy, "on_train_batch_start", Strategy):
            name = "on_train_batch_start"
            call = spans.around(strategy.on_train_batch_start, f"[Strategy]{type(strategy).__name__}.{name}")
            self.strategy_batch_start = InScope(name, module, call)
        self.clock = loop.clock = clock_for(trainer, loop.clock)
        self.reporters = [callback for callback in self.callbacks if isinstance(callback, LogStepReporter)]
        self.optimization = loop.optimization(spans)
        self.run_section = spans.around(loop.optimize, "run_training_batch")
        self.on_train_batch_end = collect_hook("on_train_batch_end", trainer, spans)
        self.exchanges = loop.results.exchanges
        self.weights = StepWeights(trainer, strict=False) if self.exchanges else None
        self.validates = trainer.enable_validation or lightning_loops.skips_next_validation(loop)
        self.steps_schedulers = bool(trainer.lr_scheduler_configs) and module.automatic_optimization

    def holds(self, trainer: Trainer) -> bool:
        """Return whether the callbacks are still those of this plan."""
        return lightning_trainer.callbacks(trainer) == self.callbacks


class LeanTrainingEpochLoop(lightning_loops.TrainingEpochLoop):
    """Lightning's training epoch loop, which runs a plan wherever one can be drawn up.

    Takes the place of ``trainer.fit_loop.epoch_loop``; what it leaves in checkpoints is the same.
    """

    plan: TrainingPlan | None = None
    agreement: StopAgreement | None = None
    ends: EpochEnds | None = None
    store_monitor: StoreMonitor | None = None
    clock: StepClock | None = None
    graphs: CompiledGraphs | None = None
    _fits = 0
    _epoch = 0
    _ended = False
    _unchecked_names = True

    def __init__(self, trainer: Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.results = LeanResults(True, trainer)
        lightning_logging.replace_results(self, self.results)
        self.val_loop: LeanEvaluationLoop = LeanEvaluationLoop(self.val_loop)

    @property
    def fit_loop(self) -> LeanFitLoop:
        """The loop that this one is in."""
        fit_loop = self.trainer.fit_loop
        assert isinstance(fit_loop, LeanFitLoop)
        return fit_loop

    @property
    def resume_point(self) -> StopPoint | None:
        """Where this fit continues exactly, if it does, until its first epoch begins."""
        resumed = self.fit_loop.resumed
        return None if resumed is None else resumed.section.place

    @override
    def update_restart_stage(self) -> None:
        super().update_restart_stage()
        if self.resume_point is not None:  # what is left of the batch is known, and Lightning need not guess
            self.reset_restart_stage()

    @override
    def on_run_start(self, data_fetcher: lightning_loops.DataFetcher) -> None:
        fit_loop = self.fit_loop
        resumed, fit_loop.resumed = fit_loop.resumed, None
        if resumed is None:
            if lightning_loops.iterates_again(self):
                fit_loop.begun_with = pack_random_states()
            super().on_run_start(data_fetcher)
        else:
            self.resume_epoch(data_fetcher, resumed)
        lightning_loops.leave_fetches_out_of_profile(self, data_fetcher)
        if self.store_monitor is None and self.trainer.world_size > 1:
            self.start_watch()
        self.plan = self.draw_plan(data_fetcher)
        if resumed is not None and resumed.section.place is not None:
            self.finish_batch(data_fetcher, resumed.section.place)

    def resume_epoch(self, data_fetcher: lightning_loops.DataFetcher, resumed: ResumeState) -> None:
        """Iterate the loaders where the checkpoint was written, and draw the random numbers that come next."""
        trainer, section = self.trainer, resumed.section
        batches, over = self.batch_progress.current.ready, lightning_loops.is_epoch_over(self)
        if section.place is None:
            in_epoch = resumed.continues_epoch(batches)
            if not in_epoch:
                restore_rng(trainer, section)
        else:
            in_epoch = section.place not in ("epoch", "end of epoch")
        lightning_dataloaders.iterate_now(data_fetcher.combined_loader)
        begins = not in_epoch and lightning_loops.iterates_again(self)
        if not in_epoch:
            if self.fit_loop.combined_loader is self.fit_loop.resumed_loader:
                restore_loader_rng(trainer, section)
            self.fit_loop.begun_with = pack_random_states()
            if not begins:
                iter(data_fetcher)
        elif over:  # the next epoch iterates
            restore_loader_rng(trainer, section)
        else:
            iterate_in_epoch(trainer, data_fetcher, section, batches)
            own = section.begun_with or []
            self.fit_loop.begun_with = own[trainer.global_rank] if len(own) == trainer.world_size else None
        super().on_run_start(data_fetcher)
        if in_epoch:
            restore_rng(trainer, section)

    def finish_batch(self, data_fetcher: lightning_loops.DataFetcher, place: StopPoint) -> None:
        """Finish the work after the last batch that the checkpoint left open."""
        if place in ("epoch", "end of epoch"):
            return
        lightning_trainer.forget_loading(self.fit_loop)
        if self.batch_progress.current.ready:
            lightning_logging.resume_iteration(lightning_logging.logger_connector(self.trainer))
        if place == "validation":
            lightning_loops.skip_next_validation(self)
        if place in ("batch", "validation"):
            self.on_advance_end(data_fetcher)

    def draw_plan(self, data_fetcher: lightning_loops.DataFetcher) -> TrainingPlan | None:
        """Return a plan for this epoch, or None if Lightning's own steps have to run."""
        if isinstance(data_fetcher, lightning_loops.DataLoaderIterFetcher):
            log.debug("Lightning's own training steps run: training_step takes the loader's iterator itself")
            return None
        return TrainingPlan(self)

    def start_watch(self) -> None:
        """Let this worker and the others look after each other, until the fit has ended."""
        trainer = self.trainer
        store = trainer.strategy.coordination_store() if isinstance(trainer.strategy, Coordinated) else None
        if store is None:
            return
        self._fits += 1
        store = dist.PrefixStore(f"itwinai/fit/{self._fits}", store)
        member = (store, trainer.global_rank, trainer.world_size)
        self.agreement = StopAgreement(*member, position=lambda: self.batch_progress.total.ready)
        self.ends = EpochEnds(*member, place=self.epoch_position, hurry=self.hurry)
        checks: list[StoreCheck] = [self.agreement, self.ends]
        if isinstance(trainer, Abortable):
            missing = MissingWorkers(*member, position=self.position, fail=trainer.abort)
            self.results.missing = self.val_loop.results.missing = missing
            checks.append(missing)
        self.store_monitor = StoreMonitor(*member, checks)
        self.store_monitor.start()
        lightning_signals.signal_connector(trainer).on_sigterm = self.ask_to_stop

    def position(self) -> int:
        """Return a number that grows with every batch and every epoch, the same for all workers."""
        batches = self.batch_progress.total.ready + self.val_loop.batch_progress.total.ready
        return batches + self.trainer.fit_loop.epoch_progress.total.completed

    def epoch_position(self) -> EpochPosition:
        """Return how far this worker is in its epoch."""
        return EpochPosition(self._epoch, lightning_loops.begun_batches(self), self._ended)

    def hurry(self) -> None:
        """Let the thread beside the training look at once."""
        if self.store_monitor is not None:
            self.store_monitor.hurry()

    def end_together(self) -> None:
        """Make sure that all workers end the epoch here, where that is not certain.

        Raises:
            UnequalStepsError: some do not.
        """
        if self.ends is None:
            return
        trainer = self.trainer
        if trainer.should_stop and lightning_loops.can_stop_early(trainer):
            self.ends.agree(STOPPED)
        elif -1 != self.max_steps <= self.global_step:
            return
        elif not all(getattr(sampler, "even_batches", False) for sampler in training_samplers(trainer)):
            self.ends.agree("its loader had no more")
        elif self.batch_progress.current.ready < trainer.num_training_batches:
            self.ends.agree("on_train_batch_start returned -1 there")

    def ask_to_stop(self) -> None:
        """Ask all workers to stop before the same batch; for a signal handler."""
        assert self.agreement is not None and self.store_monitor is not None
        self.agreement.ask()
        self.store_monitor.hurry()

    @override
    def stop_if_agreed(self) -> None:
        agreement = self.agreement
        if agreement is not None and agreement.held_back and agreement.stops_here() and not self.is_within_step():
            lightning_signals.signal_connector(self.trainer).received_sigterm = True
            self.stop()

    @override
    def teardown(self) -> None:
        if self.store_monitor is not None:
            lightning_signals.signal_connector(self.trainer).on_sigterm = None
            self.store_monitor.end()
            self.store_monitor = self.agreement = self.ends = self.results.missing = self.val_loop.results.missing = (
                None
            )
        self.clock = self.graphs = None
        super().teardown()

    @override
    def run(self, data_fetcher: lightning_loops.DataFetcher) -> None:
        trainer = self.trainer
        with quick_log(trainer.lightning_module, self.results, lightning_logging.logger_connector(trainer)):
            self.run_epoch(data_fetcher)

    def run_epoch(self, data_fetcher: lightning_loops.DataFetcher) -> None:
        """Run the steps of one epoch."""
        try:
            self.reset()
            self._ended = False
            self._epoch = self.trainer.current_epoch
            self.results.metric_sync.uneven = False
            self.on_run_start(data_fetcher)
            restarted = True  # possibly: only the first iteration can follow a checkpoint
            while not self.done:
                try:
                    self.advance(data_fetcher)
                    if self._unchecked_names:
                        self.check_names()
                    self.on_advance_end(data_fetcher)
                except StopIteration:
                    break
                finally:
                    if restarted:
                        self.on_iteration_done()
                        restarted = False
            if self.clock is not None:
                self.clock.wait_for_device()
            self.end_together()
            if self.plan is not None and self.plan.optimization is not None:
                self.plan.optimization.check_any_loss(lightning_loops.begun_batches(self))
            self._ended = True
            self.results.restore_unlogged_keys()
            self.results.sync_epoch()
            if isinstance(self.trainer.strategy, ComparesRanks):
                self.trainer.strategy.compare_ranks()
        finally:
            self.plan = None  # it refers to half of the run
            if self.clock is not None:
                self.clock.pause()

    @override
    def advance(self, data_fetcher: lightning_loops.DataFetcher) -> None:
        plan, fit_loop = self.plan, self.fit_loop
        fit_loop.stop_point = None
        if plan is None or self.restarting:
            fit_loop.saves.collects = True
            super().advance(data_fetcher)
            fit_loop.mark_done("batch")
            return
        if not plan.holds(self.trainer):
            plan = self.plan = TrainingPlan(self)
        if self.val_loop.restarting:  # a batch is trained, so it is past the validation of its checkpoint
            self.val_loop.restarting = False
        if self.agreement is not None:
            self.stop_if_agreed()
        clock = plan.clock
        split = clock if clock is not None and clock.begin() else None

        batch, _, _ = next(data_fetcher)
        if split is not None:
            split.mark(Phase.DATA)
        batch_idx = self.batch_idx + 1
        progress = self.batch_progress
        progress.is_last_batch = data_fetcher.done
        batch = plan.transfer(batch)
        if split is not None:
            split.mark(Phase.TRANSFER)
        progress.increment_ready()
        connector = lightning_logging.logger_connector(self.trainer)
        connector.begin_batch(self.results, batch)
        if plan.weights is not None:
            self.results.weight = plan.weights(batch_idx)

        with self.results.metric_sync.weighing(self.results.weight):
            outputs: Any = None
            skip_rest = False
            if batch is None:
                lightning_loops.warn_of_none_batch(self)
            else:
                skip_rest = plan.on_train_batch_start is not None and plan.on_train_batch_start(batch, batch_idx) == -1
                if plan.strategy_batch_start is not None:
                    plan.strategy_batch_start(batch, batch_idx)
                if split is not None:
                    split.mark(Phase.CALLBACKS)
                if skip_rest:
                    progress.increment_by(0, is_last_batch=True)
                else:
                    progress.increment_started()
                    if plan.optimization is not None:
                        plan.optimization.clock = split
                    outputs = plan.run_section(plan, batch, batch_idx)
                    if split is not None and plan.optimization is None:
                        split.mark(Phase.MANUAL)
            progress.increment_processed()

            if plan.steps_schedulers:
                self.update_lr_schedulers("step", update_plateau_schedulers=False)
                if self.is_last_of_epoch():
                    self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
                if split is not None:
                    split.mark(Phase.OPTIMIZER)
            if skip_rest:
                raise StopIteration

            if plan.exchanges:
                self.results.sync_step(
                    everyone=self.store_monitor is None and lightning_logging.is_first_iteration(connector)
                )
                if split is not None:
                    split.mark(Phase.COMMUNICATION)
            fit_loop.stop_point = "batch"
            if plan.on_train_batch_end is not None:
                fit_loop.saves.collects = True
                plan.on_train_batch_end(outputs, batch, batch_idx)
                if split is not None:
                    split.mark(Phase.CALLBACKS)
        metrics = connector.end_batch(self.results)
        if fit_loop.saves.collects:
            fit_loop.saves.flush()
        progress.increment_completed()
        logs = (metrics["log"] or plan.reporters) and is_log_step(self.trainer)
        if logs and not (plan.optimization is not None and self.is_accumulating()):
            self.log_values(plan, metrics["log"], batch)
        if clock is not None:
            clock.mark(Phase.LOGGING)
            clock.end()

    def log_values(self, plan: TrainingPlan, values: dict[str, Any], batch: Any) -> None:
        """Log the values of this step, together with those of callbacks."""
        for reporter in plan.reporters:
            values = {**values, **reporter.values_at_log_step(self.trainer, batch)}
        if values:
            lightning_logging.logger_connector(self.trainer).log_metrics(values)

    def optimize(self, plan: TrainingPlan, batch: Any, batch_idx: int) -> Any:
        """Run the optimization that the module asks for on one batch."""
        if plan.optimization is not None:
            if not plan.optimization.holds():
                clock = plan.optimization.clock
                plan.optimization = self.optimization(ProfilerSpans(self.trainer))
                assert plan.optimization is not None
                plan.optimization.clock = clock
            return plan.optimization.run(batch, batch_idx, self.is_accumulating())
        return lightning_loops.optimize_manually(self, batch, batch_idx)

    def optimization(self, spans: ProfilerSpans) -> LeanOptimization | None:
        """Return what optimizes the batches of an epoch: graphs if they are asked for; None for manual optimization."""
        trainer = self.trainer
        compiles = getattr(trainer, "compile_step", False)
        if compiles and self.graphs is None:
            self.graphs = CompiledGraphs(trainer, required=compiles is True)
        if self.graphs is not None:
            return self.graphs.optimization(spans)
        return LeanOptimization(trainer, spans) if trainer.lightning_module.automatic_optimization else None

    def is_last_of_epoch(self) -> bool:
        """Return whether the batch in work is the last of its epoch."""
        progress = self.batch_progress
        return progress.is_last_batch or progress.current.ready == self.trainer.num_training_batches

    def is_accumulating(self) -> bool:
        """Return whether the batch in work only adds to the gradients of a later step."""
        trainer = self.trainer
        if self.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
            return False
        return trainer.strategy.handles_gradient_accumulation or not self.is_last_of_epoch()

    def is_within_step(self) -> bool:
        """Return whether gradients wait for the next batch, and would be missing in a checkpoint that is saved here."""
        saves = any(isinstance(callback, Preemptible) for callback in lightning_trainer.callbacks(self.trainer))
        saves = saves or _folder_of_lightning(self.trainer) is not None
        return saves and lightning_loops.is_accumulating(self.trainer)

    @override
    def check_monitored(self, key: str, value: float) -> None:
        check_scheduler(self.trainer, key, value)

    @override
    def reset(self) -> None:
        resume_point = self.resume_point
        if resume_point in ("batch", "validation", "iteration"):
            if self.batch_progress.current.completed < self.batch_progress.current.ready:
                self.batch_progress.increment_completed()  # it was saved by a hook at the end of the batch
            return
        if resume_point is None and self.restarting:
            resumes_exactly = all(sampler is not None for sampler in training_samplers(self.trainer))
            with lightning_checkpoints.without_warning_of_mid_epoch() if resumes_exactly else nullcontext():
                super().reset()
            return
        super().reset()

    @property
    def done(self) -> bool:
        """Whether the epoch has ended."""
        if self.restarting or self.trainer.should_stop:
            return super().done
        return self.is_last_of_epoch() or -1 != self.max_steps <= self.global_step

    @override
    def on_advance_end(self, data_fetcher: lightning_loops.DataFetcher) -> None:
        plan, trainer = self.plan, self.trainer
        if self.batch_progress.is_last_batch or (trainer.should_stop and lightning_loops.can_stop_early(trainer)):
            self.end_together()  # before a validation that others might not begin
        if plan is None or (plan.validates and lightning_loops.validates_now(self, data_fetcher)):
            signalled = self.validate(data_fetcher)
        else:
            if plan.steps_schedulers:
                self.update_lr_schedulers("step", update_plateau_schedulers=True)
            if not self.is_accumulating():
                lightning_loops.count_stepped_batch(self)
            if trainer.should_stop:
                lightning_loops.flush_loggers(self)
            signalled = trainer.received_sigterm and not lightning_loops.is_training_done(self)
            self.fit_loop.stop_point = "iteration"
        if signalled and not self.is_within_step():
            self.stop()

    def validate(self, data_fetcher: lightning_loops.DataFetcher) -> bool:
        """Do the work after a batch, including validation; return whether a signal has come."""
        fit_loop, trainer = self.fit_loop, self.trainer
        fit_loop.hold_position("batch")
        stops_here = trainer.should_stop and not lightning_loops.is_validation_due(self, data_fetcher)
        self.val_loop.at_end = None if stops_here else self.reach_end_of_validation
        fit_loop.saves.collects = True
        signalled = False
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            signalled = True
            if self.val_loop.is_running:  # it is begun again
                fit_loop.saves.forget()
                self.stop()
        finally:
            self.val_loop.at_end = None
        if stops_here:
            fit_loop.hold_before_stop()
        else:
            fit_loop.saved_position = None
        fit_loop.mark_done("iteration")
        return signalled

    def check_names(self) -> None:
        """Check that monitored metrics are logged, as soon as all stages have logged once."""
        if not self.trainer.enable_validation or self.val_loop.has_run:
            self._unchecked_names = False
            check_names(self.trainer, self.results, self.val_loop.results)

    def reach_end_of_validation(self) -> None:
        """Mark the validation as done in checkpoints that hooks save from now on."""
        if self._unchecked_names:
            self.check_names()
        self.fit_loop.saved_position, self.fit_loop.stop_point = None, "validation"

    def stop(self) -> NoReturn:
        """End the run because of a signal, with a checkpoint of where it stands, and say where."""
        trainer = self.trainer
        signum = lightning_signals.signal_connector(trainer).signum
        rank_zero_info(
            f"itwinai: stopped by {signum.name} in epoch {trainer.current_epoch}, after {self.global_step} steps"
        )
        for callback in lightning_trainer.callbacks(trainer):
            if isinstance(callback, Preemptible):
                callback.on_preemption(trainer, trainer.lightning_module)
        if (folder := _folder_of_lightning(trainer)) is not None:
            trainer.save_checkpoint(f"{folder}/{PREEMPTED}{EXTENSION}")
            if isinstance(plugin := trainer.strategy.checkpoint_io, PortableCheckpointIO):
                plugin.wait()
        raise stopped_by(signum)


def _folder_of_lightning(trainer: Trainer) -> str | None:
    """Return where a run that is stopped is saved if Lightning's own callbacks save checkpoints: they know no signals.

    Returns:
        None if a callback of ours saves it, or none saves anything.
    """
    callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    if any(isinstance(one, Preemptible) for one in callbacks):
        return None
    folders = [str(one.dirpath) for one in callbacks if one.dirpath and (one.save_top_k or one.save_last)]
    return folders[0].rstrip("/") if folders else None
