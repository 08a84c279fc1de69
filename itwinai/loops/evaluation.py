"""Validation and test: Lightning's loop, running a plan of what its batches really have to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from itwinai.compat import lightning_logging, lightning_loops, lightning_trainer
from itwinai.data.weights import check_drawn, sampler_of
from itwinai.loops.fast_log import quick_log
from itwinai.loops.hook_plan import BatchTransfer, ProfilerSpans, collect_hook, step_call
from itwinai.loops.results import LeanResults


class EvaluationPlan:
    """What the batches of one evaluation call.

    Args:
        loop: the loop, everything set up.
    """

    def __init__(self, loop: LeanEvaluationLoop) -> None:
        trainer = loop.trainer
        name = "test" if trainer.testing else "validation"
        spans = ProfilerSpans(trainer)
        self.callbacks = list(lightning_trainer.callbacks(trainer))
        self.transfer = BatchTransfer(trainer, spans)
        self.on_batch_start = collect_hook(f"on_{name}_batch_start", trainer, spans)
        self.step = step_call(f"{name}_step", f"{'test' if trainer.testing else 'val'}_step_context", trainer, spans)
        self.takes_batch_idx = lightning_loops.takes_batch_idx(getattr(trainer.lightning_module, f"{name}_step"))
        self.on_batch_end = collect_hook(f"on_{name}_batch_end", trainer, spans)
        self.several_loaders = lightning_loops.evaluates_several_loaders(loop)
        self.exchanges = loop.results.exchanges
        self.samplers = [sampler_of(loader) for loader in lightning_loops.evaluation_loaders(loop)]
        if not lightning_loops.evaluates_in_sequence(loop):  # a batch is made of those of all loaders
            self.samplers = [None] * len(self.samplers)
        self.counts = not trainer.sanity_checking


class LeanEvaluationLoop(lightning_loops.EvaluationLoop):
    """Lightning's evaluation loop, which runs a plan wherever one can be drawn up.

    Args:
        stock: the loop of Lightning that it takes the place of.
    """

    plan: EvaluationPlan | None = None
    history: Mapping[str, Any] | None = None  # of the run that is resumed, until the loaders are created
    at_end: Callable[[], None] | None = None  # called before the hooks at the end of a validation within a fit
    is_running = False
    has_run = False  # also in the sanity check

    def __init__(self, stock: lightning_loops.StockEvaluationLoop) -> None:
        super().__init__(stock.trainer, **lightning_loops.evaluation_options(stock))
        self.results = LeanResults(False, stock.trainer)
        lightning_logging.replace_results(self, self.results)

    @override
    def run(self) -> Any:
        trainer = self.trainer
        self.is_running = True  # also after an exception
        try:
            connector = lightning_logging.logger_connector(trainer)
            with quick_log(trainer.lightning_module, self.results, connector), self.results.metric_sync.merging():
                outputs = super().run()
            if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
                lightning_logging.logger_connector(trainer).check_monitored()
        finally:
            self.plan = None  # it refers to half of the run
        self.is_running = False
        return outputs

    @override
    def setup_data(self) -> None:
        super().setup_data()
        if self.history is not None and self.loaders:
            self.write_history(self.history)
            self.history = None

    @override
    def begin_end(self) -> None:
        self.has_run = True
        if self.at_end is not None:
            self.at_end()

    @override
    def on_run_start(self) -> None:
        super().on_run_start()
        self.plan = EvaluationPlan(self)
        lightning_loops.leave_fetches_out_of_profile(self)

    @override
    def end_loader(self) -> None:
        self.results.sync_epoch()

    @override
    def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        plan, trainer = self.plan, self.trainer
        if plan is None or dataloader_iter is not None:
            super().evaluate_batch(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        if lightning_trainer.callbacks(trainer) != plan.callbacks:
            plan = self.plan = EvaluationPlan(self)
        batch = plan.transfer(batch, dataloader_idx)
        which = (dataloader_idx,) if plan.several_loaders else ()
        progress, results = self.batch_progress, self.results
        progress.increment_ready()
        connector = lightning_logging.logger_connector(trainer)
        connector.begin_batch(results, batch, *which)
        sampler = plan.samplers[dataloader_idx]
        if sampler is not None and not batch_idx:
            check_drawn(lightning_loops.evaluation_loaders(self)[dataloader_idx], sampler)
        results.weight = 1.0 if sampler is None else sampler.weight_of(batch_idx)

        with results.metric_sync.weighing(results.weight):
            if plan.on_batch_start is not None:
                plan.on_batch_start(batch, batch_idx, *which)
            progress.increment_started()
            output = plan.step(batch, batch_idx, *which) if plan.takes_batch_idx else plan.step(batch, *which)
            progress.increment_processed()
            if plan.exchanges:
                results.sync_step(everyone=lightning_logging.is_first_iteration(connector))
            if plan.on_batch_end is not None:
                plan.on_batch_end(output, batch, batch_idx, *which)
        metrics = connector.end_batch(results)
        progress.increment_completed()

        if plan.counts:
            step = lightning_loops.count_evaluated_batch(self, dataloader_idx)
            if metrics["log"]:
                connector.log_metrics(metrics["log"], step=step)
        if trainer.received_sigterm and not progress.is_last_batch:
            raise SIGTERMException
