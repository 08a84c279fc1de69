"""Sum up the events of a trace by operator, so that the events themselves need not be kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from itwinai.profiling.chrome_trace import Event, EventKind
from itwinai.profiling.communication import CommunicationTime, communication_time

_STEP = "ProfilerStep"


@dataclass(frozen=True)
class Operator:
    """What the calls of an operator cost in a step, without the operators that it calls itself.

    Attributes:
        name: as torch's profiler names it.
        calls: number of calls per step.
        cpu_us: microseconds on the CPU per step. On a GPU that is the time to start the kernels. Operators of several
            threads add up, so that the sum over all operators may be longer than the step.
        device_us: microseconds per step for which its kernels ran on the GPU; None without a GPU, or where the trace
            does not say which operators have started the kernels.
        memory_bytes: memory that it allocated and did not free, per step; negative where it freed more. None if it was
            not recorded.
    """

    name: str
    calls: float
    cpu_us: float
    device_us: float | None
    memory_bytes: float | None


@dataclass
class Cost:
    """What an operator costs itself: microseconds on CPU and device, and bytes."""

    time: float = 0.0
    device: float = 0.0
    memory: int = 0
    calls: int = 0


class OperatorSums:
    """Sums over all windows of an `OperatorProfile`.

    Args:
        memory: whether the events know of memory.

    Attributes:
        steps: number of steps so far.
        has_device: whether any kernel was recorded.
        missing: why there is no time of collective operations, if there is none.
    """

    def __init__(self, memory: bool) -> None:
        self.memory = memory
        self.steps = 0
        self.has_device = False
        self.missing = ""
        self._step_us = 0.0
        self._operators: dict[str, Cost] = defaultdict(Cost)
        self._kernels: dict[str, Cost] = defaultdict(Cost)  # that no operator has started
        self._has_callers = False
        self._communication_steps = 0
        self._communicating = 0.0
        self._overlapped = 0.0

    def add(self, events: Sequence[Event], complete: int) -> bool:
        """Add the events of a window.

        Args:
            events: in any order.
            complete: number of steps that have ended in the window. What comes after them is left out.

        Returns:
            Whether the events contain that many steps; if not, nothing is added.
        """
        marks = sorted((event.start, event.end) for event in _steps(events, EventKind.RANGE))
        if len(marks) < complete or not complete:
            return False
        start, end = marks[0][0], marks[complete - 1][1]
        device_end = math.inf if len(marks) == complete else _device_end(events, complete, end)
        self.steps += complete
        self._step_us += end - start
        self.has_device |= any(event.kind is EventKind.DEVICE for event in events)
        self._add_operators(events, start, end, device_end)
        time, self.missing = communication_time(_clipped(events, start, end, device_end))
        if time is not None:
            self._communication_steps += complete
            self._communicating += time.total_us
            self._overlapped += time.overlapped_us
        return True

    @property
    def step_us(self) -> float | None:
        """Mean duration of a step in microseconds; None if there was none."""
        return self._step_us / self.steps if self.steps else None

    @property
    def communication(self) -> CommunicationTime | None:
        """Collective operations per step; None where that is not known."""
        steps = self._communication_steps
        return CommunicationTime(self._communicating / steps, self._overlapped / steps) if steps else None

    def operators(self) -> list[Operator]:
        """Return the operators, those first that take most time: on the GPU, if there is one.

        Kernels that no operator has started, as those of CUDA graphs, stand among them under their own names.
        """
        operators = [
            Operator(
                name,
                sums.calls / self.steps,
                sums.time / self.steps,
                sums.device / self.steps if self._has_callers else None,
                sums.memory / self.steps if self.memory else None,
            )
            for name, sums in self._operators.items()
        ]
        operators += [
            Operator(name, sums.calls / self.steps, 0.0, sums.device / self.steps, None)
            for name, sums in self._kernels.items()
        ]
        return sorted(operators, key=lambda operator: (operator.device_us or 0.0, operator.cpu_us), reverse=True)

    def _add_operators(self, events: Sequence[Event], start: float, end: float, device_end: float) -> None:
        callers: dict[int, Cost | None] = {}
        for event, cost in own_costs(events):
            if event.kind is not EventKind.HOST:
                continue
            counts = start <= event.start < end
            if counts:
                sums = self._operators[event.name]
                sums.calls += cost.calls
                sums.time += cost.time
                sums.memory += cost.memory
            if event.operator:
                callers[event.operator] = sums if counts else None
        for event in events:
            if event.kind is not EventKind.DEVICE:
                continue
            duration = event.end - event.start
            if event.operator not in callers:
                if start <= event.start < device_end:
                    kernel = self._kernels[_short(event.name)]
                    kernel.calls += 1
                    kernel.device += duration
            elif (caller := callers[event.operator]) is not None:
                caller.device += duration
                self._has_callers = True


def own_costs(events: Iterable[Event]) -> Iterator[tuple[Event, Cost]]:
    """Yield everything that ran on the CPU, and what it cost without what it has called."""
    threads: dict[object, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in (EventKind.HOST, EventKind.RANGE, EventKind.MEMORY):
            threads[event.thread].append(event)
    for of_thread in threads.values():
        of_thread.sort(key=lambda event: (event.start, -event.end))
        running: list[tuple[Event, Cost]] = []  # callers first
        for event in of_thread:
            while running and (event.start >= running[-1][0].end or event.end > running[-1][0].end):
                yield running.pop()
            if event.kind is EventKind.MEMORY:
                if running:
                    running[-1][1].memory += event.memory
                continue
            cost = Cost(event.end - event.start, calls=1)
            if running:
                caller, callers_cost = running[-1]
                callers_cost.time -= cost.time
                cost.calls = 0 if caller.name == event.name else 1  # an overload that hands on to another one
            running.append((event, cost))
        yield from reversed(running)


def _clipped(events: Iterable[Event], start: float, end: float, device_end: float) -> Iterator[Event]:
    """Yield what lies between two times. Kernels run later than the step that started them: they have another end."""
    for event in events:
        begin, until = max(event.start, start), min(event.end, device_end if event.kind is EventKind.DEVICE else end)
        if begin < until:
            yield event._replace(start=begin, end=until)


def _steps(events: Iterable[Event], kind: EventKind) -> Iterator[Event]:
    return (event for event in events if event.kind is kind and event.name.startswith(_STEP))


def _device_end(events: Iterable[Event], complete: int, end: float) -> float:
    """Return when the kernels of the last complete step have ended: the device has marks of the steps of its own."""
    ends = sorted(event.end for event in _steps(events, EventKind.DEVICE_RANGE))
    return ends[complete - 1] if len(ends) >= complete else end


def _short(kernel: str) -> str:
    """Return the name of a kernel without the types of its arguments."""
    return kernel.replace("(anonymous namespace)::", "").partition("(")[0].strip()
