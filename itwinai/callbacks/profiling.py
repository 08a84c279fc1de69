"""Where the time of a training step goes, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PyTorchProfiler

from itwinai.collectives import gather_of
from itwinai.compat import lightning_dataloaders
from itwinai.errors import ConfigurationError
from itwinai.launchers.cpu_affinity import cores_of_each, own_cores, quota
from itwinai.loggers.adapters.files import hand_over
from itwinai.monitoring.sample_count import batch_size_of
from itwinai.profiling.pyspy import StackSampler
from itwinai.profiling.step_timer import WARM_UP, StepClock, StepSplit, split_of
from itwinai.profiling.torch_profiler import OperatorProfile, Windows, peak_memory
from itwinai.reporting.output import is_fast_dev_run, print_report
from itwinai.reporting.run_dir import run_folder
from itwinai.reporting.sections import Section
from itwinai.reporting.sections.step_recommendations import Setting
from itwinai.reporting.sections.steps import Profile, files_of, sections_of, write_files


@dataclass(frozen=True)
class Found:
    """The measurements of one worker.

    Attributes:
        split: how long the parts of its steps took; None if nothing timed them.
        peak_memory: in bytes; None where that is not known.
        node: the number of its node.
        cores: those that it may run on.
    """

    split: StepSplit | None
    peak_memory: int | None
    node: int
    cores: frozenset[int]


class ProfilingCallback(Callback):
    """Measure where the time of training steps goes, on every worker, under every strategy.

    Each step is split into waiting for data, forward, backward, waiting for other workers, optimizer, hooks and
    loggers; a table, a plot and recommendations show where the time goes and which worker is the slowest. In a few
    steps, torch's profiler records operators: a trace per worker, for Perfetto or TensorBoard, and a table of the
    slowest operators. All files are in the folder ``profile`` of the run; MLflow and W&B get those of rank 0 after a
    successful run. With ``fast_dev_run`` nothing is recorded or written.

    The first 200 steps are split, then one of 11; on a GPU one of 23, in which the host waits for the device.

    Args:
        operators: record operators with torch's profiler.
        wait: steps before each recording window; the first steps of a run are not typical, so the split skips 10.
        warmup: steps at the start of a window that are not recorded.
        active: steps to record in a window. Memory and the size of traces grow with them.
        repeat: number of windows.
        memory: record allocations too.
        shapes: record the shapes of the operators' inputs, in the trace.
        python: sample the Python stacks of each worker with py-spy too: a flame graph and a table of functions.
        python_rate: samples per second.
        python_seconds: duration of the sampling; None for the whole fit.
        folder: folder for the files; by default ``profile`` in the folder of the run.

    Attributes:
        profile: what was found, on rank 0 after the fit.

    Raises:
        ConfigurationError: a number is too small, or another profiler of torch runs.
        MissingPackageError: at the start of a fit, py-spy is not installed and ``python`` is on.
    """

    def __init__(
        self,
        *,
        operators: bool = True,
        wait: int = 10,
        warmup: int = 2,
        active: int = 5,
        repeat: int = 1,
        memory: bool = False,
        shapes: bool = False,
        python: bool = False,
        python_rate: int = 50,
        python_seconds: float | None = 30.0,
        folder: str | Path | None = None,
    ) -> None:
        self.operators = operators
        self.windows = Windows(wait, warmup, active, repeat)
        self.memory = memory
        self.shapes = shapes
        self.python = python
        self.python_rate = python_rate
        self.python_seconds = python_seconds
        self.folder = None if folder is None else Path(folder)
        self.profile: Profile | None = None
        self.step_clock: StepClock | None = None
        self._operators: OperatorProfile | None = None
        self._stacks: StackSampler | None = None
        self._folder = Path()
        self._epoch_start = 0  # nanoseconds
        self._opening = 0  # nanoseconds from the start of epochs after the first to their first step

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "step_clock": None, "_operators": None, "_stacks": None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to record."""
        if self.operators and isinstance(trainer.profiler, PyTorchProfiler):  # type: ignore[attr-defined]
            raise ConfigurationError(
                "The trainer's profiler is Lightning's PyTorchProfiler, and ProfilingCallback records operators with "
                "torch's profiler as well, of which there can be only one. Leave out the trainer's profiler, or set "
                "ProfilingCallback(operators=False)."
            )
        self.profile = None
        self._operators = self._stacks = None
        self._epoch_start = self._opening = 0
        if is_fast_dev_run(trainer):
            return
        folder = Path(trainer.strategy.broadcast(self.folder or run_folder(trainer) / "profile"))
        if self.operators:
            self._operators = OperatorProfile(
                folder, trainer.global_rank, self.windows, memory=self.memory, shapes=self.shapes
            )
            self._operators.start()
        if self.python:
            self._stacks = StackSampler(
                folder, trainer.global_rank, rate=self.python_rate, duration=self.python_seconds
            )
            self._stacks.start()
        self._folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step of the recorder of operators."""
        operators = self._operators
        if operators is not None:
            recording = operators.recording
            operators.step()
            if self.step_clock is not None and (recording or operators.recording):
                self.step_clock.discard()

    def skips_hook(self, hook: str) -> bool:
        """Return whether a hook need not be called: the loop's clock counts without it."""
        return hook == "on_train_batch_end" and self._operators is None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when an epoch begins: from here on it waits for its loader."""
        self._epoch_start = perf_counter_ns()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count how long the loader took to begin the epoch."""
        clock = self.step_clock
        if clock is not None and clock.later_epochs:
            self._opening += max(clock.epoch_began - self._epoch_start, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather what the workers have found."""
        self._stop()
        if not is_fast_dev_run(trainer):
            self._keep(trainer, gather_of(trainer.strategy)(self._found(trainer)))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the measurements of this worker: the others may not answer any more."""
        self._stop()
        if self.step_clock is not None and self.profile is None and not is_fast_dev_run(trainer):
            self._keep(trainer, [self._found(trainer)])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Report the measurements, unless a summary does, and log the files."""
        if stage == "fit" and self.profile is not None:
            print_report(trainer, "where the time of a step goes", self)
            hand_over(trainer.loggers, files_of(self.profile), self.profile.folder.parent)

    def report(self) -> list[Section]:
        """Return the report: the split of a step, workers, operators, functions, and recommendations."""
        return [] if self.profile is None else sections_of(self.profile)

    def _split(self, trainer: Trainer) -> StepSplit | None:
        """Return how long the parts of this worker's steps have taken."""
        clock = self.step_clock
        if clock is None:
            return None
        since = clock.warm if clock.steps >= 2 * WARM_UP else None
        engine = getattr(trainer.strategy, "exchange_time", None)
        return split_of(clock, since, engine and engine())

    def _found(self, trainer: Trainer) -> Found:
        return Found(self._split(trainer), peak_memory(), trainer.node_rank, own_cores())

    def _keep(self, trainer: Trainer, found: Sequence[Found]) -> None:
        """Keep what some workers have found, on rank 0."""
        if not trainer.is_global_zero:
            return
        self.profile = Profile(
            splits=[one.split for one in found if one.split is not None],
            peak_memory=[one.peak_memory for one in found],
            setting=self._setting(
                trainer, cores_of_each([one.cores for one in found if one.node == found[0].node], quota())
            ),
            folder=self._folder,
            recorded=self._operators,
            stacks=self._stacks,
        )
        write_files(self.profile)

    def _stop(self) -> None:
        if self._operators is not None:
            self._operators.stop()
        if self._stacks is not None:
            self._stacks.stop()

    def _setting(self, trainer: Trainer, cores: int) -> Setting:
        loaders: Sequence[Any] = lightning_dataloaders.training_loaders(trainer)
        loader = loaders[0] if loaders else None
        clock = self.step_clock
        epochs = 0 if clock is None else clock.later_epochs
        starting = 0 if clock is None else self._opening + clock.waited_at_start
        return Setting(
            loader_workers=getattr(loader, "num_workers", None),
            keeps_workers=bool(getattr(loader, "persistent_workers", False)),
            pins_memory=bool(getattr(loader, "pin_memory", False)),
            cores=cores,
            on_gpu=trainer.strategy.root_device.type == "cuda",
            log_every_n_steps=trainer.log_every_n_steps,  # type: ignore[attr-defined]
            batch_size=None if loader is None else batch_size_of(loader, trainer.world_size),
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            later_epochs=epochs,
            epoch_start=starting / epochs / 1e9 if epochs else 0.0,
        )
