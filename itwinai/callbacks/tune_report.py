"""Report to the search that a run is a trial of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from itwinai.callbacks.pbt_hyperparameters import Hyperparameters, hyperparameters_of, mutate
from itwinai.checkpoints.naming import report_path
from itwinai.compat import lightning_loops
from itwinai.errors import ConfigurationError, MissingMetricError
from itwinai.loops.deferred_save import when_hooks_are_done
from itwinai.trials.current_session import find_session
from itwinai.trials.ray_session import FunctionSession
from itwinai.trials.records import Mode, Objective
from itwinai.trials.report_interval import parse_moment
from itwinai.trials.session import Decision, TrialSession

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class TuneReportCallback(Checkpoint):
    """Report logged metrics to Ray Tune from a run that is a trial, and stop the run when the search says so.

    For trials of `itwinai tune`, and for a training function that you give to ``ray.tune.Tuner``. With several workers
    rank 0 reports, and all stop together. Outside of trials it does nothing.

    Args:
        metrics: names of logged metrics, or a mapping from the names under which they are reported. By default
            everything that is logged. ``epoch`` and ``step`` are always reported.
        on: when: ``"validation"``, at the end of each validation; ``"epoch"``, at the end of each training epoch; or
            ``"500steps"``. If a validation is the last thing in an epoch, the report waits for the end of the epoch,
            so that what is logged there is from the same epoch.
        everything: report all logged metrics, beside ``metrics``.
        mode: whether a small (``"min"``) or a large (``"max"``) value of the first of ``metrics`` is better; it says
            which checkpoint is the best.
        checkpoint_every: save a checkpoint every n reports; 0 saves only when the search asks for one. The search gets
            its path: the file itself is written once, by rank 0, into the trial's folder.
        best_only: save a checkpoint only if it is better than all before.
        keep: number of newest checkpoints to keep, beside the best one; None keeps all, which population based
            training needs, as other trials may resume from an old one.

    Raises:
        ConfigurationError: an argument is invalid, or contradicts another.
    """

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        on: str = "validation",
        everything: bool = False,
        mode: Mode = "min",
        checkpoint_every: int = 0,
        best_only: bool = False,
        keep: int | None = 2,
    ) -> None:
        super().__init__()
        self.metrics = _named(metrics)
        self.on, self.every_n_steps = parse_moment(on)
        if mode not in ("min", "max"):
            raise ConfigurationError(f"mode={mode!r} is unknown; choose 'min' or 'max'.")
        if checkpoint_every < 0 or (keep is not None and keep < 1):
            raise ConfigurationError(
                f"checkpoint_every must be at least 0 and keep at least 1; got {checkpoint_every} and {keep}."
            )
        if best_only and not (self.metrics and checkpoint_every):
            raise ConfigurationError(
                "best_only=True saves a checkpoint when the first of metrics is better than before: name the metrics, "
                "and set checkpoint_every, for example to 1."
            )
        self.everything = everything or not self.metrics
        self.objective = Objective(next(iter(self.metrics)), mode) if self.metrics else None
        self.checkpoint_every = checkpoint_every
        self.best_only = best_only
        self.keep = keep
        self.session: TrialSession | None = find_session()
        self.reports = 0
        self._best: float | None = None
        self._best_path = ""
        self._saved: list[str] = []
        self._due = False
        self._stopped = False
        self._last: dict[str, float] = {}
        self._reported = False
        self._fresh: Hyperparameters = []
        self._copied: Hyperparameters | None = None

    @property
    def resume_path(self) -> str | None:
        """Path of the checkpoint that this trial has to resume from, for ``trainer.fit(..., ckpt_path=...)``.

        It is None when the trial begins, and outside of trials.
        """
        return None if self.session is None else self.session.resume_path

    def skips_hook(self, hook: str) -> bool:
        """Return whether a hook does nothing in this run, so that it need not be called."""
        return self.session is None or (hook == "on_train_batch_end" and self.every_n_steps is None)

    @contextmanager
    def serving_workers(self) -> Iterator[None]:
        """Let workers that are launched inside the context report through this process, if Ray asks this one."""
        if not isinstance(self.session, FunctionSession):
            yield
            return
        own = self.session
        with own.for_workers() as self.session:
            try:
                yield
            finally:
                self.session = own

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the trial, if this callback was created before it began."""
        self.session = self.session or find_session()
        self._due = self._stopped = self._reported = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how the optimizers are configured, before the state of a checkpoint comes over them."""
        self._fresh = hyperparameters_of(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimizers use this trial's configuration also after another trial's checkpoint was loaded."""
        if self._copied is not None and self.session is not None:
            mutate(trainer, self._copied, self._fresh)
        self._copied = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report, if the interval of steps is over."""
        if self.every_n_steps is None or lightning_loops.is_accumulating(trainer):
            return
        if trainer.global_step % self.every_n_steps == 0:
            self._report(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, unless the epoch ends with this validation, or it is not part of a fit."""
        if self.on != "validation" or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._due = True
        else:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what has waited for the end of the epoch."""
        if self.on == "epoch" or self._due:
            self._due = False
            self._report(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report once more what a run has reported last that was over when it was resumed: the search may not know."""
        if self.session is not None and trainer.is_global_zero and self.reports and not self._reported:
            path = self._saved[-1] if self._saved else ""
            self.session.report(self.reports, self._last, path, self._best_path, again=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a trial needs that resumes from this state."""
        return {
            "reports": self.reports,
            "last": dict(self._last),
            "best": self._best,
            "best_path": self._best_path,
            "saved": list(self._saved),
            "hyperparameters": self._fresh,
            "folder": None if self.session is None else self.session.folder,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this trial, or of the one whose checkpoint it has copied."""
        self.reports = state_dict["reports"]
        self._last = dict(state_dict["last"])
        self._copied = state_dict["hyperparameters"]
        if self.session is not None and self.session.folder == state_dict["folder"]:
            self._best = state_dict["best"]
            self._best_path = state_dict["best_path"]
            self._saved = list(state_dict["saved"])  # another trial's are not ours to remove

    def _report(self, trainer: Trainer) -> None:
        if self.session is None or self._stopped:
            return
        self.reports += 1
        # Values that are not synchronized differ between the ranks: rank 0's count.
        values = self._values(trainer) if trainer.is_global_zero else {}
        self._last, self._reported = values, True
        improved = self._note_best(trainer, values)
        when_hooks_are_done(trainer, partial(self._finish_report, trainer, values, improved))

    def _finish_report(self, trainer: Trainer, values: dict[str, float], improved: bool) -> None:
        """Save a checkpoint if it is due, and report to the search."""
        path = ""
        if self.checkpoint_every and self.reports % self.checkpoint_every == 0 and (improved or not self.best_only):
            path = self._save(trainer, improved)
        decision = self._ask(trainer, lambda session: session.report(self.reports, values, path, self._best_path))
        if decision == Decision.SAVE:
            saved = path or self._save(trainer, improved)
            decision = self._ask(trainer, lambda session: session.saved(saved, self._best_path))
        self._remove_old(trainer)
        if decision == Decision.STOP:
            self._stopped = trainer.should_stop = True
            # Even before min_epochs and min_steps.
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None

    def _ask(self, trainer: Trainer, say: Callable[[TrialSession], Decision]) -> Decision:
        """Let rank 0 talk to the search, and all ranks know the answer."""
        assert self.session is not None
        answer = say(self.session).value if trainer.is_global_zero else None
        return Decision(trainer.strategy.broadcast(answer))

    def monitored_metrics(self) -> list[str]:
        """Return the names of the logged metrics that it reports."""
        return list(self.metrics.values())

    def _values(self, trainer: Trainer) -> dict[str, float]:
        """Return what is to be reported."""
        logged = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not isinstance(value, Tensor) or value.numel() == 1
        }
        missing = [name for name in self.metrics.values() if name not in logged]
        if missing:
            raise MissingMetricError(missing[0], sorted(logged), type(self).__name__)
        values = dict(logged) if self.everything else {}
        values |= {name: logged[source] for name, source in self.metrics.items()}
        return {**values, "epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}

    def _note_best(self, trainer: Trainer, values: Mapping[str, float]) -> bool:
        """Return whether rank 0's values are the best so far, and remember them."""
        if self.objective is None or not self.checkpoint_every:
            return False
        value: float = trainer.strategy.broadcast(values.get(self.objective.metric))  # type: ignore[assignment]
        if self._best is not None and not self.objective.better(value, self._best):
            return False
        self._best = value
        return True

    def _save(self, trainer: Trainer, improved: bool) -> str:
        """Save a checkpoint, on all ranks, and return its path."""
        assert self.session is not None
        path = report_path(self.session.folder, self.reports)
        before = self._best_path
        if improved:
            self._best_path = path
        self._saved.append(path)
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except BaseException:
            self._saved.remove(path)
            self._best_path = before
            raise
        return path

    def _remove_old(self, trainer: Trainer) -> None:
        """Remove the checkpoints that are not kept; by now the search knows of newer ones."""
        if self.keep is None:
            return
        old = [path for path in self._saved[: -self.keep] if path != self._best_path]
        for path in old:
            trainer.strategy.remove_checkpoint(path)
            self._saved.remove(path)


def _named(metrics: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Return the logged names by the names under which they are reported."""
    if metrics is None:
        return {}
    if isinstance(metrics, str):
        return {metrics: metrics}
    return dict(metrics) if isinstance(metrics, Mapping) else {name: name for name in metrics}
