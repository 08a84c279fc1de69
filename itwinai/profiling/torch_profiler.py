"""What the operators of training steps cost, by torch's profiler, over a few windows of steps."""

from __future__ import annotations

import gzip
import shutil
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from itwinai.compat import torch as compat_torch
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import part_name, remove_parts
from itwinai.profiling.chrome_trace import read_trace
from itwinai.profiling.communication import CommunicationTime
from itwinai.profiling.operator_stats import Operator, OperatorSums
from itwinai.profiling.stderr_filter import without_lines

_COMPRESSION = 3  # of gzip: 9, its default, takes ten times as long and saves a quarter

_TAKEN = (
    "Another profiler of torch runs in this process, and there can be only one at a time: what it had recorded may be "
    "lost. Use one of them: leave out the Trainer's profiler='pytorch' (or your own torch.profiler.profile), or "
    "itwinai's profiling of operators."
)


@dataclass(frozen=True)
class Windows:
    """Which steps are recorded, all counted in steps. A window is the steps from a warm-up to the last recorded step.

    Attributes:
        wait: steps before each window, which cost nothing. The first steps of a run allocate memory, choose algorithms
            and compile, and are not typical.
        warmup: steps at the start of a window that are traced and thrown away: the first pay for the tracing itself.
        active: steps of a window that are recorded. Memory, time and size of the trace grow with them.
        repeat: number of windows.

    Raises:
        ConfigurationError: a number is too small.
    """

    wait: int = 10
    warmup: int = 2
    active: int = 5
    repeat: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.name in ("active", "repeat") else 0
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"{field.name} of Windows must be an integer of at least {least}; got {value!r}."
                )


class OperatorProfile:
    """Record operators in windows of steps with torch's profiler, and sum them up.

    After each window a trace is written, ``rank-R.W.pt.trace.json.gz``: Perfetto opens it, and the plugin of
    TensorBoard, which takes ``rank-R`` for the worker and ``W`` for the span. Only sums are kept in memory.

    Args:
        folder: for the traces.
        rank: of this worker, for the names of the traces.
        windows: which steps to record.
        memory: record allocations too.
        stacks: record the Python stack of each operator in the trace. The recorded steps get slower, the trace larger.
        shapes: record the shapes of the inputs in the trace.

    Attributes:
        traces: the files that were written.
        missing: what could not be measured, and why.
        overhead: seconds that went into starting the windows, and into writing and summing up their events.
        peak_memory: bytes, known after `stop`: on a GPU the most that tensors have taken up at a time since the process
            began, without one the most memory that the process has had. None where the system does not say.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        windows: Windows | None = None,
        memory: bool = False,
        stacks: bool = False,
        shapes: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.rank = rank
        self.windows = windows or Windows()
        self.memory = memory
        self.stacks = stacks
        self.shapes = shapes
        self.traces: list[Path] = []
        self.missing: list[str] = []
        self.overhead = 0.0
        self.peak_memory: int | None = None
        self._sums = OperatorSums(memory)
        self._profiler: profile | None = None
        self._window = 0
        self._steps_in_window = 0
        self._left = 0  # steps until the next window; below 1 there is none
        self._running = False

    @property
    def recording(self) -> bool:
        """Whether a window has begun and not yet ended, which makes the steps longer."""
        return self._profiler is not None

    @property
    def steps(self) -> int:
        """The number of steps that were recorded."""
        return self._sums.steps

    @property
    def step_us(self) -> float | None:
        """Mean duration of a recorded step, in microseconds; None if there was none."""
        return self._sums.step_us

    @property
    def operators(self) -> list[Operator]:
        """The operators of the recorded steps, those first that take most time."""
        return self._sums.operators()

    @property
    def communication(self) -> CommunicationTime | None:
        """Collective operations in a recorded step; None where that is not known: `missing` says why after `stop`."""
        return self._sums.communication

    def start(self) -> None:
        """Begin to count steps.

        Raises:
            ConfigurationError: a window begins at once, and another profiler of torch is running.
            OSError: the folder cannot be created.
        """
        if self._running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)
        self._running = True
        self._left = self.windows.wait
        if self._left == 0:
            self._begin_window()

    def step(self) -> None:
        """Say that a training step has ended.

        Raises:
            ConfigurationError: another profiler of torch is running.
        """
        if self._profiler is None:
            self._left -= 1
            if self._left == 0:
                self._begin_window()
            return
        self._steps_in_window += 1
        try:
            begins_or_ends = self._steps_in_window in (self.windows.warmup, self.windows.warmup + self.windows.active)
            with _without_probes() if begins_or_ends else nullcontext():
                self._profiler.step()
        except RuntimeError as error:
            self._forget_window()
            if "Profiler is already enabled" in str(error):
                raise ConfigurationError(_TAKEN) from error
            raise
        if self._steps_in_window == self.windows.warmup + self.windows.active:
            self._end_window(self.windows.active)

    def stop(self) -> None:
        """End the recording; what was recorded of an unfinished window is kept if a step of it was complete.

        May be called at any time, also while an exception is on its way, and twice.
        """
        if not self._running:
            return
        self._running = False
        if self._profiler is not None:
            complete = max(0, self._steps_in_window - self.windows.warmup)
            window = f"window {self._window} of {self.windows.repeat}"
            try:
                self._end_window(complete)
            except (ConfigurationError, RuntimeError) as error:  # it must not hide why the run ends
                self.missing.append(f"{window}: {error}")
                warnings.warn(f"The profile of operators has lost its last window. {error}", stacklevel=2)
            else:
                of = f"{complete} of its {self.windows.active} steps" if complete else "nothing"
                self.missing.append(f"{window}: the run ended in it, and {of} could be recorded")
        if begun := self.windows.repeat - self._window:
            self.missing.append(
                f"{begun} of {self.windows.repeat} windows of operators: the run ended before they began"
            )
        if self.steps and not self._sums.has_device and _uses_cuda():
            self.missing.append("the time of operators on the GPU: torch's profiler has recorded no kernel")
        if self.steps and self.communication is None:
            self.missing.append(f"the time of collective operations: {self._sums.missing}")
        self._left = 0
        self.peak_memory = peak_memory()

    def _begin_window(self) -> None:
        began = time.perf_counter()
        if compat_torch.is_profiling():
            raise ConfigurationError(_TAKEN)
        self._window += 1
        self._steps_in_window = 0
        device = {ProfilerActivity.CUDA} if _uses_cuda() else set()
        self._profiler = profile(
            activities=({ProfilerActivity.CPU} | device) & supported_activities(),
            schedule=schedule(wait=0, warmup=self.windows.warmup, active=self.windows.active, repeat=1),
            record_shapes=self.shapes,
            profile_memory=self.memory,
            with_stack=self.stacks,
        )
        with _without_probes():
            self._profiler.start()
        self.overhead += time.perf_counter() - began

    def _end_window(self, complete: int) -> None:
        """Write and sum up what was recorded, and throw it away."""
        began = time.perf_counter()
        profiler = self._forget_window()
        with _without_probes():
            profiler.stop()
        if complete:
            if not _has_steps(profiler):
                raise ConfigurationError(_TAKEN)
            name = f"rank-{self.rank}.{self._window}.pt.trace.json"
            plain = self.folder / part_name(name)
            try:
                profiler.export_chrome_trace(str(plain))
                profiler.profiler = None  # it holds the events, and is held by cycles that not all runs collect
                if not self._sums.add(read_trace(plain), complete):
                    raise ConfigurationError(_TAKEN)
                self.traces.append(_compress(plain, self.folder / f"{name}.gz"))
            except ConfigurationError:
                raise
            except (OSError, ValueError) as error:  # torch itself says only in the terminal that it could not write
                self.missing.append(f"the trace of window {self._window}: {error}")
                warnings.warn(
                    f"A trace could not be written to {self.folder}: {error}. The run continues.", stacklevel=3
                )
            finally:
                plain.unlink(missing_ok=True)
        self.overhead += time.perf_counter() - began
        if self._running and self._window < self.windows.repeat:
            self._left = self.windows.wait
            if self._left == 0:
                self._begin_window()

    def _forget_window(self) -> profile:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        self._left = 0
        return profiler


def _without_probes() -> AbstractContextManager[None]:
    """Leave out the lines in which torch's profiler names points for tracers, and those on which thread begins it."""
    return without_lines(b"USDT:", b"ERROR: External init callback must run in same thread")


def _compress(plain: Path, path: Path) -> Path:
    """Make a compressed file, which appears whole or not at all."""
    beside = path.with_name(part_name(path.name))
    try:
        with plain.open("rb") as source, gzip.open(beside, "wb", compresslevel=_COMPRESSION) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _has_steps(profiler: profile) -> bool:
    """Return whether a profiler has recorded anything: torch crashes when it writes a trace of nothing."""
    results = None if profiler.profiler is None else profiler.profiler.kineto_results
    return results is not None and any(event.name().startswith("ProfilerStep") for event in results.events())


def _uses_cuda() -> bool:
    """Return whether this process computes on a GPU; only to ask for one would take memory on it."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def peak_memory() -> int | None:
    """Return the largest amount of memory in bytes: of tensors on the GPU if it is in use, else of the process."""
    if _uses_cuda():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
