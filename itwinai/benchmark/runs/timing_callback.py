"""The callback that measures a run of a benchmark, on every worker, and ends it after a number of steps."""

from __future__ import annotations

import functools
import gc
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from itwinai.benchmark.records import Measured
from itwinai.benchmark.runs.aggregation import WorkerTimes, aggregate
from itwinai.callbacks.system_monitor import gpu_of
from itwinai.collectives import gather
from itwinai.compat import lightning_dataloaders
from itwinai.monitoring.gpus import gpus_of
from itwinai.monitoring.node_topology import Node, nodes_of, this_location
from itwinai.monitoring.rapl import rapl_instruments
from itwinai.monitoring.sample_count import trained_samples
from itwinai.monitoring.system_sampler import Sampler
from itwinai.profiling.step_timer import Reading, StepClock, split_of
from itwinai.profiling.torch_profiler import peak_memory

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from itwinai.monitoring.gauges import Instruments


MOST_STEPS = 20_000
"""Of a run, unless more are asked for."""

ENERGY_EVERY = 0.1
"""Seconds between two readings of energy. Only these are sampled, which takes far less than a thousandth of a core."""


class TooFewStepsError(RuntimeError):
    """A run has ended before all steps were measured."""


class TimingCallback(Callback):
    """Measure some steps of a fit, and end it after them.

    Args:
        steps: least number of steps that are measured.
        warmup: number of steps before them.
        seconds: measure more steps if these take less time: short runs say more about chance than about speed.
        began: when the command was started, in seconds since 1970.

    Attributes:
        measured: on rank 0 after the fit; None before.
        step_clock: left here by the loop.
    """

    def __init__(self, steps: int, warmup: int, seconds: float, began: float) -> None:
        self.steps = steps
        self.warmup = warmup
        self.seconds = seconds
        self.began = began
        self.measured: Measured | None = None
        self.step_clock: StepClock | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to one fit."""
        self._done = 0
        self._last = 0  # number of the last step that is measured, known when the warm-up ends
        self._first_step = 0.0
        self._warm_up_began = 0  # nanoseconds, as below
        self._ends = array("q")  # when each measured step has ended, and the last one before them; nanoseconds
        self._warm: Reading | None = None
        self._loss: Any = None
        self._energy: Energy | None = None
        self._nodes = 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "step_clock": None, "_energy": None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the fit run until this callback ends it, and begin to read energy, once per node."""
        self._forget()
        for scheduler in trainer.lr_scheduler_configs:
            scheduler.strict = False  # it may wait for a value of the validation, which does not take place
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1
        places = gather(trainer, this_location(trainer.node_rank, gpu_of(trainer.strategy.root_device)))
        nodes = nodes_of(places)
        self._nodes = len(nodes)
        node = next((node for node in nodes if node.leader == trainer.global_rank), None)
        if node is not None:
            self._energy = Energy(node)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the first step begins, and where the clock stands before the first one that is measured."""
        if not self._first_step:
            self._first_step = time.time()
        if self._done == self.warmup and self._warm is None and self.step_clock is not None:
            self._warm = self.step_clock.reading()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when a step ends."""
        self._done += 1
        if self._done < self.warmup:
            # The first of several is the least typical one.
            self._warm_up_began = self._warm_up_began or time.perf_counter_ns()
            return
        if self._done == self.warmup:
            _synchronize(trainer.strategy.root_device)
            self._last = self.warmup + self._steps_to_measure(trainer)
            # All that was imported is looked through once, which can take half a second: not in one of the next steps.
            gc.collect()
            if self._energy is not None:
                self._energy.begin()
        elif self._done == self._last:
            _synchronize(trainer.strategy.root_device)
            trainer.should_stop = True
        self._ends.append(time.perf_counter_ns())
        if self._done == self.warmup + self.steps:  # the same step in all runs, however many others follow
            self._loss = outputs
        if self._done == self._last and self._energy is not None:
            self._energy.end()

    def _steps_to_measure(self, trainer: Trainer) -> int:
        """Return how many steps all workers are to measure."""
        steps = self.steps
        if self.seconds and self.warmup > 1:
            step = (time.perf_counter_ns() - self._warm_up_began) / 1e9 / (self.warmup - 1)
            steps = max(steps, min(round(self.seconds / step), MOST_STEPS))
        for scheduler in trainer.lr_scheduler_configs:
            # The only one of torch's that raises an error after its end.
            if (end := getattr(scheduler.scheduler, "total_steps", None)) is not None:
                steps = min(steps, max(end * trainer.accumulate_grad_batches - self.warmup, self.steps))
        return int(trainer.strategy.broadcast(steps))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring together what the workers have measured."""
        if self._energy is not None:
            self._energy.stop()
        if not self._last or self._done < self._last:
            raise TooFewStepsError(
                f"The run has ended after {self._done} steps, and {self.warmup} + {self.steps} are to be measured. Is "
                "there a callback, or a limit in the config, that ends it? Or choose fewer with --steps and --warmup."
            )
        workers = gather(trainer, self._times(trainer))
        if trainer.is_global_zero:
            self.measured = aggregate(workers, self._counted(trainer), self.began, self._facts(trainer))
        self._energy = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End sampling, if the fit has failed."""
        if self._energy is not None:
            self._energy.stop()

    def _times(self, trainer: Trainer) -> WorkerTimes:
        ends, clock = self._ends, self.step_clock
        engine = getattr(trainer.strategy, "exchange_time", None)
        loss = self._loss.get("loss") if isinstance(self._loss, dict) else self._loss
        return WorkerTimes(
            seconds=(ends[-1] - ends[0]) / 1e9,
            durations=array("q", (after - before for before, after in zip(ends, ends[1:], strict=False))),
            split=None if clock is None else split_of(clock, self._warm, engine and engine()),
            peak_memory=peak_memory(),
            first_step=self._first_step,
            loss=None if loss is None else float(loss) * trainer.accumulate_grad_batches,
            watts=None if self._energy is None else self._energy.watts(),
            missing=() if self._energy is None else self._energy.missing(),
        )

    def _counted(self, trainer: Trainer) -> int | None:
        """Return the number of samples of all workers in the measured steps."""
        loaders = lightning_dataloaders.training_loaders(trainer)
        batches = trainer.num_training_batches
        return trained_samples(loaders, trainer.world_size, batches, self.warmup, self._last - self.warmup)

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        trained = [parameter for parameter in trainer.lightning_module.parameters() if parameter.requires_grad]
        device = trainer.strategy.root_device
        size: Callable[[Tensor], int] = getattr(trainer.strategy, "full_size", Tensor.numel)
        return {
            "parameters": sum(size(parameter) for parameter in trained),
            "gradient_bytes": sum(size(parameter) * parameter.element_size() for parameter in trained),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
            "nodes": self._nodes,
            "threads": torch.get_num_threads(),
        }


class Energy:
    """The energy that a node uses between two moments.

    Args:
        node: the node, which this process measures.
    """

    def __init__(self, node: Node) -> None:
        openers: dict[str, Callable[[], Instruments]] = {
            "energy of the processors": rapl_instruments,
            "GPUs": functools.partial(gpus_of, node),
        }
        self._sampler = Sampler(openers, ENERGY_EVERY, node.name)
        self._sampler.start()
        self._before: dict[str, tuple[float, float]] = {}
        self._after: dict[str, tuple[float, float]] = {}

    def begin(self) -> None:
        """Note where the meters stand at the first moment."""
        self._before = self._read()

    def end(self) -> None:
        """Note where they stand at the second."""
        self._after = self._read()

    def stop(self) -> None:
        """End sampling."""
        self._sampler.stop()

    def watts(self) -> dict[str, float]:
        """Return the mean power by source between the two moments, of those that could be read in between."""
        watts = {}
        for name, (joules, seconds) in (self._after or self._read()).items():
            joules_before, seconds_before = self._before.get(name, (0.0, 0.0))
            if seconds > seconds_before:
                watts[name] = (joules - joules_before) / (seconds - seconds_before)
        return watts

    def missing(self) -> tuple[str, ...]:
        """Return what could not be measured, and why."""
        return tuple(f"{what}: {reason}" for what, reason in self._sampler.sampled().missing.items())

    def _read(self) -> dict[str, tuple[float, float]]:
        return {use.source: (use.joules, use.seconds) for use in self._sampler.sampled().energy}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
