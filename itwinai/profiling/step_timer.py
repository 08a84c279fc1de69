"""Where the time of training steps goes: a clock that the training loop stops after each phase of a step."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from time import perf_counter_ns

KEPT = 65_536
"""Number of the last steps whose durations are kept, for percentiles: half a megabyte."""

WARM_UP = 10
"""Number of first steps that are not typical: they allocate memory, choose algorithms, compile."""


class Phase(IntEnum):
    """A part of a training step."""

    DATA = 0
    TRANSFER = 1
    FORWARD = 2
    BACKWARD = 3
    COMMUNICATION = 4
    OPTIMIZER = 5
    CALLBACKS = 6
    LOGGING = 7
    MANUAL = 8


_PHASES = len(Phase)  # an enumeration counts its members at each call

MEANING = {
    Phase.DATA: "waiting for the next batch",
    Phase.TRANSFER: "batch to the device, with its hooks",
    Phase.FORWARD: "training_step",
    Phase.BACKWARD: "backward, without waiting for other workers",
    Phase.COMMUNICATION: "waiting for other workers (what overlaps with backward is not counted)",
    Phase.OPTIMIZER: "zero_grad, clipping, optimizer step, schedulers",
    Phase.CALLBACKS: "hooks of callbacks and of the module",
    Phase.LOGGING: "handing metrics to the loggers",
    Phase.MANUAL: "training_step with manual optimization, which cannot be split",
}


class StepClock:
    """Sums up how long each phase of the training steps takes on this worker.

    The loop calls `begin` before a step, `mark` after each phase if the step is split, and `end` after the step.

    Args:
        synchronize: waits until the accelerator has done all it was told. Without it a mark on a GPU would say when
            work was given to it, not when it was done.
        every: split one of n steps, after the first ones. All steps are counted and timed as a whole. A prime,
            so that steps in which something special happens, such as logging, are split as often as others.
        first: split each of the first n steps, so that short runs are measured well; at least `every`.

    Attributes:
        covers_gradients: whether the exchange of gradients is measured too; the strategy says so.
        warm: the reading after the first `WARM_UP` steps or some more, for those who leave them out; None before.
        left_out: nanoseconds of the steps that are not counted, see `discard`.
        epoch_began: when the first step of this epoch began, or that of the last one, by ``perf_counter_ns``; 0 before.
        later_epochs: epochs begun after the first one, as far as it is known how long they waited for a batch.
        waited_at_start: nanoseconds until the first batch in those epochs. It is part of the duration of these steps,
            and of no phase: loaders whose workers start again in each epoch take their time then.
    """

    __slots__ = (
        "_began",
        "_current",
        "_discarded",
        "_earlier",
        "_ended",
        "_in_epoch",
        "_last",
        "_waited_until",
        "_splitting",
        "_starting",
        "_turn",
        "_unexposed",
        "_worked",
        "communicating",
        "covers_gradients",
        "durations",
        "epoch_began",
        "every",
        "first",
        "later_epochs",
        "left_out",
        "spent",
        "split_steps",
        "split_time",
        "step_time",
        "steps",
        "synchronize",
        "waited_at_start",
        "warm",
    )

    def __init__(self, synchronize: Callable[[], None] | None = None, every: int = 1, first: int = 0) -> None:
        self.synchronize = synchronize
        self.every = every
        self.first = max(first, every)
        self.steps = 0
        self.split_steps = 0
        self.spent = [0] * _PHASES
        self.split_time = 0
        self.step_time = 0
        self.communicating = 0
        self.covers_gradients = False
        self.warm: Reading | None = None
        self.left_out = 0
        self.epoch_began = 0
        self.later_epochs = 0
        self.waited_at_start = 0
        self.durations = array("q", bytes(8 * KEPT))
        self._turn = 0  # the number of the next step of which `begin` does more than look at the time
        self._splitting = False
        self._starting = False  # the first step of a later epoch is split
        self._discarded = False
        self._current = [0] * _PHASES
        self._unexposed = 0  # communication of the step in work that no one has waited for
        self._began = 0
        self._last = 0
        self._ended = 0
        self._waited_until = 0  # steps until the accelerator was waited for last
        self._in_epoch = False
        self._worked = 0  # time of all steps until the epoch began
        self._earlier = 0  # `between` of earlier epochs

    # What is called in each step does little: even an attribute that is set costs more there than in a tight loop.

    def begin(self) -> bool:
        """Start a step; return whether it is split into phases."""
        if self.steps < self._turn:
            self._began = perf_counter_ns()
            return False
        return self._begin_turn()

    def _begin_turn(self) -> bool:
        """Start a step that is split, or the first of an epoch."""
        steps = self.steps
        self._starting = not self._in_epoch and self.epoch_began > 0
        self._splitting = splitting = steps % self.every == 0 or steps < self.first or self._starting
        if splitting:
            self._current = [0] * _PHASES
            self._unexposed = 0
            self.wait_for_device()
        else:
            self._turn = self._next_turn()
        self._began = self._last = now = perf_counter_ns()
        if not self._in_epoch:
            self._in_epoch = True
            self.epoch_began = self._ended = now
            self._worked = self.step_time + self.left_out
        return splitting

    def wait_for_device(self) -> None:
        """Wait for what the accelerator has still to do of the last steps, and count that as their time.

        The host gives it work faster than it is done, so that the steps that nothing waits in end too early.
        """
        if self.synchronize is None:
            return
        began = perf_counter_ns()
        self.synchronize()
        late = min(self.steps - self._waited_until, KEPT)
        if late > 0 and self._in_epoch:
            waited = perf_counter_ns() - began
            self.step_time += waited
            self._ended += waited
            for step in range(self.steps - late, self.steps):
                self.durations[step % KEPT] += waited // late
        self._waited_until = self.steps

    def _next_turn(self) -> int:
        """Return the number of the next step that is split, from `steps` on."""
        return self.steps if self.steps < self.first else -(-self.steps // self.every) * self.every

    def mark(self, phase: Phase) -> None:
        """Count the time since the last mark as that of a phase."""
        if not self._splitting:
            return
        if self.synchronize is not None:
            self.synchronize()
        now = perf_counter_ns()
        self._current[phase] += now - self._last
        self._last = now

    def communicated(self, exposed: int, total: int) -> None:
        """Count time of the running phase as communication.

        Args:
            exposed: nanoseconds for which this worker has just waited for others.
            total: nanoseconds that the communication took, also beside computation.
        """
        if not self._splitting:
            return
        self._current[Phase.COMMUNICATION] += exposed
        self._last += exposed
        self._unexposed += total - exposed

    def discard(self) -> None:
        """Do not count the step in work: something that is not part of the training makes it longer."""
        self._discarded = True

    def end(self) -> None:
        """End a step."""
        self._ended = now = perf_counter_ns()
        duration = now - self._began
        if self._discarded:
            self._discarded = False
            self.left_out += duration
            return
        steps = self.steps
        self.durations[steps % KEPT] = duration
        self.step_time += duration
        self.steps = steps + 1
        if self._splitting:
            self._add_split(duration)

    def _add_split(self, duration: int) -> None:
        spent, current = self.spent, self._current
        if self._starting:
            waited, current[Phase.DATA] = current[Phase.DATA], 0
            duration -= waited
            self.waited_at_start += waited
            self.later_epochs += 1
            self._starting = False
        for phase, nanoseconds in enumerate(current):
            spent[phase] += nanoseconds
        self.communicating += current[Phase.COMMUNICATION] + self._unexposed
        self.split_time += duration
        self.split_steps += 1
        self._splitting = False
        self._waited_until = self.steps
        self._turn = self._next_turn()
        if self.warm is None and self.steps >= WARM_UP:
            self.warm = self.reading()

    def pause(self) -> None:
        """End an epoch: what came after its last step, such as a validation, still lies between steps."""
        if self._in_epoch:
            self._ended = perf_counter_ns()
            self._earlier = self.between
            self._in_epoch = False
            self._turn = self.steps

    @property
    def between(self) -> int:
        """Nanoseconds between steps of an epoch, until the end of the last one: validation, checkpoints."""
        if not self._in_epoch:
            return self._earlier
        return self._earlier + self._ended - self.epoch_began - (self.step_time + self.left_out - self._worked)

    def reading(self) -> Reading:
        """Return the sums so far."""
        return Reading(
            self.steps,
            self.split_steps,
            tuple(self.spent),
            self.split_time,
            self.step_time,
            self.between,
            self.communicating if self.covers_gradients else None,
        )

    def last(self, steps: int) -> Sequence[int]:
        """Return the durations of the last steps in nanoseconds, in any order; at most `KEPT`."""
        count, at = min(steps, self.steps, KEPT), self.steps % KEPT
        if count <= at:
            return self.durations[at - count : at]
        return self.durations[:at] + self.durations[KEPT - (count - at) :]


@dataclass(frozen=True)
class Reading:
    """What a `StepClock` has summed up, in nanoseconds.

    Attributes:
        steps: all steps.
        split_steps: those that were split into phases.
        spent: by phase, of the steps that were split.
        split_time: duration of the steps that were split.
        step_time: duration of all steps.
        between: time between steps of an epoch: validation, checkpoints.
        communicating: communication, also beside computation; None where that is not known.
    """

    steps: int = 0
    split_steps: int = 0
    spent: tuple[int, ...] = (0,) * len(Phase)
    split_time: int = 0
    step_time: int = 0
    between: int = 0
    communicating: int | None = None

    def since(self, earlier: Reading) -> Reading:
        """Return what was added after an earlier reading."""
        communicating = self.communicating
        if communicating is not None and earlier.communicating is not None:
            communicating -= earlier.communicating
        return Reading(
            self.steps - earlier.steps,
            self.split_steps - earlier.split_steps,
            tuple(now - before for now, before in zip(self.spent, earlier.spent, strict=True)),
            self.split_time - earlier.split_time,
            self.step_time - earlier.step_time,
            self.between - earlier.between,
            communicating,
        )


@dataclass(frozen=True)
class Communication:
    """How long workers exchange gradients in a step, in seconds, where the strategy's engine has measured it itself.

    Attributes:
        total: from the start of the first exchange to the end of the last.
        overlapped: the part of it during which backward was still computing.
        computing: how long backward computes, from its start until only the exchange is left.
    """

    total: float
    overlapped: float
    computing: float

    @property
    def exposed(self) -> float:
        """The part for which the worker waits."""
        return max(self.total - self.overlapped, 0.0)


@dataclass(frozen=True)
class StepSplit:
    """How long a training step takes on one worker, and how much of it each phase takes. Times are seconds per step.

    Attributes:
        steps: the number of steps.
        split_steps: the number of those that were split into phases.
        step: mean duration of a step.
        between: mean time between two steps of an epoch: validation, checkpoints.
        phases: mean time of each phase that takes any.
        rest: what lies between the phases: the loop itself.
        communication: communication, also beside computation; None where that is not known.
        p50: median duration of a step.
        p95: 95 of 100 steps are shorter.
        longest: the longest step.
    """

    steps: int
    split_steps: int
    step: float
    between: float
    phases: Mapping[Phase, float]
    rest: float
    communication: float | None
    p50: float
    p95: float
    longest: float

    def share(self, phase: Phase) -> float:
        """Return the share of a step that a phase takes."""
        whole = sum(self.phases.values()) + self.rest
        return self.phases.get(phase, 0.0) / whole if whole else 0.0

    @property
    def overlap(self) -> float | None:
        """The share of the communication that takes place while backward computes, where that is known."""
        if not self.communication:
            return None
        return max(0.0, 1.0 - self.phases.get(Phase.COMMUNICATION, 0.0) / self.communication)


def split_of(clock: StepClock, since: Reading | None = None, engine: Communication | None = None) -> StepSplit | None:
    """Return how long the steps of a clock took.

    Args:
        clock: the clock.
        since: leave out what was before this reading.
        engine: what the strategy's engine has measured of its exchanges during backward, which the clock has counted
            as backward.

    Returns:
        The times per step, or None if there was no step.
    """
    read = clock.reading().since(since or Reading())
    if not read.steps:
        return None
    split_steps = max(read.split_steps, 1)
    seconds = [nanoseconds / split_steps / 1e9 for nanoseconds in read.spent]
    communication = None if read.communicating is None else read.communicating / split_steps / 1e9
    if engine is not None:
        # The engine has measured other steps than the clock: what both know is how backward is divided.
        scale = seconds[Phase.BACKWARD] / (engine.computing + engine.exposed or 1.0)
        seconds[Phase.BACKWARD] -= engine.exposed * scale
        seconds[Phase.COMMUNICATION] += engine.exposed * scale
        communication = (communication or 0.0) + engine.total * scale
    durations = sorted(clock.last(read.steps))
    return StepSplit(
        steps=read.steps,
        split_steps=read.split_steps,
        step=read.step_time / read.steps / 1e9,
        between=read.between / read.steps / 1e9,
        phases={phase: seconds[phase] for phase in Phase if seconds[phase] > 0},
        rest=max(read.split_time / split_steps / 1e9 - sum(seconds), 0.0),
        communication=communication,
        p50=percentile(durations, 50) / 1e9,
        p95=percentile(durations, 95) / 1e9,
        longest=durations[-1] / 1e9,
    )


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Return the smallest of some ordered numbers that is not below this percentage of them (nearest rank)."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]
