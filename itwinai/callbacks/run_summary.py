"""One screen and one page about a run that has ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from itwinai.compat import lightning_dataloaders, lightning_loops, lightning_trainer
from itwinai.interfaces import StepWatcher
from itwinai.io.atomic import write_whole
from itwinai.loggers.adapters import adapters_of
from itwinai.loggers.adapters.files import PATIENCE, hand_over
from itwinai.loggers.in_memory import Recorder
from itwinai.monitoring.sample_count import trained_samples, why_unknown
from itwinai.profiling.step_timer import StepClock
from itwinai.reporting.formatting import count_text, origin
from itwinai.reporting.html import page
from itwinai.reporting.output import is_fast_dev_run, sections_of_all
from itwinai.reporting.run_dir import run_folder
from itwinai.reporting.sections import Section
from itwinai.reporting.sections.metrics import metrics_section
from itwinai.reporting.sections.run import RunTimes, TimeSplit, environment_section, run_section
from itwinai.reporting.terminal import in_terminal
from itwinai.run_info.config import config_of
from itwinai.run_info.run import RunFacts, facts_of
from itwinai.warn import warn_user

FAILED_PATIENCE = 10.0
"""Maximum seconds for which each logger may delay the end of a failed run, to upload its page."""


class RunSummary(Callback):
    """Report a fit at its end: a summary in the terminal and an HTML report, ``run.html``.

    The report needs no network. It has the curves of all logged values, the measurements of `ProfilingCallback` and
    `SystemMonitor`, the configuration, versions and the launch plan, without secrets. MLflow and W&B get it too. With
    ``fast_dev_run`` there is no report.

    Args:
        terminal: print the summary.
        path: path of the HTML report; by default ``run.html`` in the folder of the run. False for none.

    Attributes:
        page: the page that was written.
    """

    reports_all = True

    def __init__(self, *, terminal: bool = True, path: str | Path | bool = True) -> None:
        self.terminal = terminal
        self.path = path
        self.page: Path | None = None
        self._recorder: Recorder | None = None
        self._facts: RunFacts | None = None
        self._reported = False
        self._config = ""
        self._folder = Path()
        self._times: RunTimes | None = None
        self._began = 0.0
        self._before = (0, 0, 0)
        self._validating = 0.0  # since when, by the monotonic clock; 0 between validations
        self._validation = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recorder": None, "_facts": None, "_times": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start recording the logged values."""
        if stage != "fit":
            return
        self._folder = run_folder(trainer)
        self._recorder = None
        if trainer.loggers and not is_fast_dev_run(trainer):  # without one, Lightning logs nothing at all
            self._recorder = Recorder()
            trainer.loggers.append(self._recorder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run begins."""
        self._reported = False
        if trainer.is_global_zero:
            self._facts = facts_of(trainer)
            self._config = config_of(trainer)
        self._began = time.monotonic()
        self._before = *lightning_loops.batches_done(trainer), trainer.current_epoch
        self._validating = self._validation = 0.0
        self._times = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when a validation begins."""
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the time of a validation."""
        if self._validating:
            self._validation += time.monotonic() - self._validating
            self._validating = 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run has ended."""
        self._collect_times(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report a failed run, with the reason: Lightning does not call teardown then."""
        if not self._began or self._reported:  # it has not begun, or has ended before, and a logger still waits
            return
        self.on_validation_end(trainer, pl_module)
        first = str(exception).strip().splitlines()
        self._collect_times(trainer, f"ended by {type(exception).__name__}{': ' + first[0] if first else ''}")
        self._tell(trainer, FAILED_PATIENCE)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print and write the summary; by now the others have measured what they measure."""
        if stage == "fit":
            self._tell(trainer)

    def _tell(self, trainer: Trainer, patience: float = PATIENCE) -> None:
        self._reported = True
        recorder, self._recorder = self._recorder, None
        if recorder is not None and recorder in trainer.loggers:
            trainer.loggers.remove(recorder)
        if self._times is None or is_fast_dev_run(trainer) or not trainer.is_global_zero:
            return
        sections = self._sections(trainer, recorder)
        written = None if self.path is False else self._write(sections)
        if self.terminal:
            files = Section("Files", {"page": str(written)} if written else {})
            print(in_terminal(f"run summary: {self._title()}", [*sections, files]), flush=True)
        self._times = None
        if written is not None:
            hand_over(trainer.loggers, [written], written.parent, patience)

    def _title(self) -> str:
        assert self._facts is not None and self._times is not None
        return f"{self._times.module}, {self._facts.launch.strategy}"

    def _sections(self, trainer: Trainer, recorder: Recorder | None) -> list[Section]:
        assert self._facts is not None and self._times is not None
        places = [adapter.place() for adapter in adapters_of(trainer)]
        return [
            run_section(self._times, self._facts, [place for place in places if place]),
            metrics_section(None if recorder is None else recorder.curves),
            *sections_of_all(trainer),
            environment_section(self._facts, self._config),
        ]

    def _write(self, sections: list[Section]) -> Path | None:
        path = self._folder / "run.html" if isinstance(self.path, bool) else Path(self.path)
        try:
            write_whole(path, self._page(sections))
        except OSError as error:  # the run itself has ended well
            warn_user(f"The page {path} could not be written: {error}. Give RunSummary(path=...) another place.")
            return None
        self.page = path
        return path

    def _page(self, sections: list[Section]) -> str:
        assert self._facts is not None and self._times is not None
        launch = self._facts.launch
        about = origin(
            f"strategy {launch.strategy}, {count_text(launch.world_size, 'worker')} ({launch.device})",
            begun=self._facts.started,
            command=self._facts.command,
            version=self._facts.versions.get("itwinai", ""),
        )
        return page(f"Training of {self._times.module}", sections, about=about)

    def _collect_times(self, trainer: Trainer, end: str) -> None:
        in_epoch, before, epochs = self._before
        batches = lightning_loops.batches_done(trainer)[1] - before
        loaders = lightning_dataloaders.training_loaders(trainer)
        self._times = RunTimes(
            module=type(trainer.lightning_module).__name__,
            end=end,
            seconds=time.monotonic() - self._began if self._began else 0.0,
            epochs=trainer.current_epoch - epochs,
            steps=trainer.global_step,
            batches=batches,
            samples=trained_samples(loaders, trainer.world_size, trainer.num_training_batches, in_epoch, batches),
            unknown_samples=why_unknown(loaders),
            time=self._time(trainer),
            checkpoint=getattr(trainer.checkpoint_callback, "best_model_path", "") or "",
            is_best=getattr(trainer.checkpoint_callback, "monitor", None) is not None,
        )

    def _time(self, trainer: Trainer) -> TimeSplit:
        """Return what the time went into, from the clock of the training steps if another callback watches it."""
        watching = (one for one in lightning_trainer.callbacks(trainer) if isinstance(one, StepWatcher))
        clock: StepClock | None = next((one.step_clock for one in watching if one.step_clock is not None), None)
        if clock is None or not clock.steps:
            return TimeSplit(None, 0.0, self._validation, 0)
        return TimeSplit(clock.step_time / 1e9, clock.left_out / 1e9, self._validation, clock.steps)
