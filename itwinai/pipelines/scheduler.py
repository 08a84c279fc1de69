"""Run the steps of a plan, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from itwinai.errors import PipelineError
from itwinai.launchers.child_process import ChildProcess
from itwinai.pipelines.execution import Request, begin, fail, finish, locked, read_outcome
from itwinai.pipelines.planner import Plan, PlannedStep, Planner
from itwinai.pipelines.record import shown
from itwinai.reporting.formatting import joined, span_text

_STOP = 60.0
"""Seconds that steps have to save a checkpoint after Ctrl-C."""

_TICK = 0.05


class StepsFailedError(PipelineError):
    """Steps have failed.

    Attributes:
        codes: their exit codes, by name; 128 and more for a signal.
    """

    def __init__(self, message: str, codes: Mapping[str, int]) -> None:
        super().__init__(message)
        self.codes = dict(codes)

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, int]]]:
        return type(self), (str(self), self.codes)


@dataclass
class _Running:
    planned: PlannedStep
    request: Request
    process: ChildProcess
    kept: ExitStack


@dataclass
class Scheduler:
    """Runs steps when those that they need have ended.

    Attributes:
        planner: that decides whether a step runs once its inputs are there.
        jobs: how many steps run at a time.
        say: prints a line.
        ran: names of the steps that ran.
        cached: names of the steps of which nothing has changed.
        failed: exit codes of the steps that failed, by name.
    """

    planner: Planner
    jobs: int
    say: Callable[[str], None]
    ran: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _prefixes: bool = True

    def run(self, plan: Plan, forced: Collection[str] = ()) -> None:
        """Run the steps of a plan; the steps that do not need one that fails run to their end.

        Raises:
            StepsFailedError: a step has failed; the message says which, and what did not run therefore.
        """
        waiting = [one.name for one in plan.steps if one.status in ("runs", "may run")]
        settled = {one.name for one in plan.steps if one.name not in waiting}
        self.cached += [one.name for one in plan.steps if one.status == "cached"]
        planned = {one.name for one in plan.steps}
        graph = self.planner.file.graph
        self._prefixes = self.jobs > 1 and not graph.is_chain(waiting)
        skipped: list[str] = []
        with self._passing_signals():
            try:
                while waiting or self._running:
                    for name in list(waiting):
                        needs = graph.needs[name]
                        if any(one in self.failed or one in skipped for one in needs):
                            waiting.remove(name)
                            skipped.append(name)
                        elif all(one in settled or one not in planned for one in needs) and self._has_room(name):
                            waiting.remove(name)
                            if not self._start(name, name in forced):
                                settled.add(name)
                    settled |= set(self._ended())
                    if self._running:
                        time.sleep(_TICK)
            except BaseException:
                self._stop()
                raise
        if self.failed:
            raise StepsFailedError(self._failure(skipped), self.failed)

    def _has_room(self, name: str) -> bool:
        steps = self.planner.file.steps
        if steps[name].alone and self._running:
            return False
        return len(self._running) < self.jobs and not any(steps[one].alone for one in self._running)

    def _start(self, name: str, is_forced: bool) -> bool:
        """Start a step; return False if nothing of it has changed."""
        kept = ExitStack()
        with ExitStack() as failing:
            failing.enter_context(kept)
            lock = self.planner.folder.lock_of(name)
            kept.enter_context(locked(lock, f"The step '{name}'"))
            planned = self.planner.decide(name, (), is_forced)
            if planned.status == "cached":
                self.cached.append(name)
                self.say(f"{name}: its inputs are as they were: cached")
                return False
            self.say(f"{name}: {run_text(planned)}")
            request = begin(self.planner, planned)
            process = kept.enter_context(
                ChildProcess(
                    [sys.executable, "-m", "itwinai.pipelines.step_process", str(request.write())],
                    self.planner.folder.log_of(name),
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    tied=True,
                )
            )
            self._running[name] = _Running(planned, request, process, kept)
            failing.pop_all()
        return True

    def _ended(self) -> list[str]:
        """Print what the steps have printed, and return the names of those that have ended well."""
        ended: list[str] = []
        for name, one in list(self._running.items()):
            code = one.process.code
            self._show(name, one.process.new_lines())
            if code is None:
                continue
            self._show(name, one.process.new_lines())
            if code == 0:
                try:
                    record = finish(self.planner, one.planned, one.request, read_outcome(one.request))
                except PipelineError as error:
                    self.say(f"{name}: {error}")
                    code = 1
                else:
                    self.ran.append(name)
                    ended.append(name)
                    self.say(f"{name}: done in {span_text(record.seconds)}")
            if code:
                if 0 < code <= 128:  # by itself, and not by a signal
                    fail(one.request)
                self.failed[name] = 128 - code if code < 0 else code
                self.say(f"{name}: failed with {_code_text(code)}")
            del self._running[name]
            one.kept.close()
        return ended

    def _show(self, name: str, lines: Sequence[str]) -> None:
        part = Path(self._running[name].request.part).name
        for line in lines:
            line = line.replace(part, name)  # where what it writes is when it has ended
            self.say(f"[{name}] {line}" if self._prefixes else line)

    def _stop(self) -> None:
        """End all steps: let them save first; a second Ctrl-C kills them."""
        if self._running:
            with suppress(KeyboardInterrupt):
                self.say(f"stopping {joined(list(self._running))}; Ctrl-C again kills")
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + _STOP
                while any(one.process.code is None for one in self._running.values()) and time.monotonic() < deadline:
                    time.sleep(_TICK)
        for name, one in list(self._running.items()):
            one.kept.close()
            with suppress(OSError):
                self._show(name, one.process.new_lines())
        self._running.clear()

    def _signal(self, number: int) -> None:
        for one in self._running.values():
            if one.process.code is None:
                with suppress(ProcessLookupError):
                    os.kill(one.process.pid, number)

    @contextmanager
    def _passing_signals(self) -> Iterator[None]:
        """Pass on the signal by which SLURM announces the time limit."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self._signal(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, pass_on)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _failure(self, skipped: Sequence[str]) -> str:
        file = self.planner.file.path or "the pipeline"
        logs = [shown(self.planner.folder.log_of(name).absolute()) for name in self.failed]
        text = f"The step{'s' if len(self.failed) > 1 else ''} {joined([repr(name) for name in self.failed])} failed: "
        text += f"the error is above, and in {joined(logs)}."
        if skipped:
            text += f" Not run therefore: {', '.join(skipped)}."
        return f"{text} Correct it and run the same command: it goes on from here (itwinai run {file})."


def run_text(planned: PlannedStep) -> str:
    """Return why a step runs, in a line."""
    first, *notes = planned.reasons
    if first == "has not run yet":
        return ": ".join(["runs", *notes])
    return f"{'runs' if first == 'goes on' else 'runs again'}: {', '.join(planned.reasons)}"


def _code_text(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
