"""Functions that run in child processes with a time limit, of which nothing is left.

A child is a copy of this process (a fork), so that it has the user's objects whether or not they can be pickled, and
has imported everything; where a fork is not safe, it is a copy of a new process. What it starts is found and killed
with it: children of children stay in its tree, even if their own parents have ended.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from itwinai.checks.source_lines import place, shown
from itwinai.compat import python as compat_python
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.launchers import worker
from itwinai.launchers.child_process import ChildProcess
from itwinai.launchers.environment import RankInfo
from itwinai.launchers.fork import ForkedProcess, fork, why_not_fork
from itwinai.launchers.local import free_port, loopback_interface
from itwinai.launchers.payload import dumps
from itwinai.launchers.worker_failure import Failure

GRACE = 12.0
"""Seconds that the others have after the first failure of a group: a worker that waits for another one notices it."""

STARTING = 60.0
"""Seconds that a new process has to import what it needs."""

_PR_SET_CHILD_SUBREAPER = 36


class RunFailedError(Exception):
    """A child process has ended without a result.

    Attributes:
        summary: the exception, the signal that ended it, or its time limit.
        failure: the exception, in a form that can be sent; None if there was none.
        at: the line of the user's code where it was raised, as ``model.py:12``; empty if it is not known.
        output: the end of what it has printed.
    """

    def __init__(self, summary: str, failure: Failure | None = None, at: str = "", output: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.failure = failure
        self.at = at
        self.output = output

    @property
    def error(self) -> BaseException | None:
        """The exception."""
        return None if self.failure is None else self.failure.exception()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.summary, self.failure, self.at, self.output)


def run_apart(
    name: str, work: Callable[[], Any], folder: Path, limit: float, tick: Callable[[], None] = lambda: None
) -> Any:
    """Run a function in a child process, and return what it returns.

    Args:
        name: of the run, and of its files.
        work: the function; what it returns has to pickle.
        folder: for its files.
        limit: seconds after which it is ended.
        tick: called many times a second meanwhile.

    Raises:
        RunFailedError: it has raised an exception, was killed, or took too long.
    """
    return _run({name: work}, folder, limit, tick)[0]


def run_group(
    name: str,
    work: Callable[[RankInfo], Any],
    workers: int,
    folder: Path,
    limit: float,
    tick: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Run a function in a group of child processes, as an outer launcher would; return the results by rank.

    Args:
        name: of the run, and of its files.
        work: the function, which is given the ranks of its process.
        workers: number of processes.
        folder: for their files.
        limit: seconds after which they are ended.
        tick: called many times a second meanwhile.

    Raises:
        RunFailedError: one of them has raised an exception, was killed, or took too long.
    """
    port = free_port()

    def of_rank(rank: int) -> Callable[[], Any]:
        info = RankInfo(rank, workers, rank, workers, 0, 1, "127.0.0.1", port, "itwinai check")

        def run() -> Any:
            os.environ.update(info.variables())
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
            return work(info)

        return run

    return _run({f"{name}-rank{rank}": of_rank(rank) for rank in range(workers)}, folder, limit, tick)


def _run(works: Mapping[str, Callable[[], Any]], folder: Path, limit: float, tick: Callable[[], None]) -> list[Any]:
    if (reason := why_not_fork()) is not None:
        return _run_in_new_process(works, folder, limit, tick, reason)
    files = compat_python.objects_of(*worker.FILES)
    worker.flush(files)
    handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_DFL}
    processes: dict[str, ForkedProcess] = {}
    try:
        for name, work in works.items():
            path = folder / name
            processes[name] = fork(_child(path, work), handlers, [*processes.values()], files)
        if not (in_time := _wait(list(processes.values()), limit, tick)):
            _ask_where_they_are(list(processes.values()))
    finally:
        for process in processes.values():
            _end(process)
    return _results(processes, folder, limit, in_time)


def _run_in_new_process(
    works: Mapping[str, Callable[[], Any]], folder: Path, limit: float, tick: Callable[[], None], reason: str
) -> list[Any]:
    """Let a new process run functions in its children, as there is a reason why this one may not be copied."""
    name = next(iter(works))
    answer = folder / f"{name}.answer"
    try:
        packed = dumps((dict(works), folder, limit, answer))
    except Exception as error:  # the user's own __reduce__ and __getstate__ run here: anything can come
        raise ConfigurationError(
            f"Checks run in copies of this process, and that is not safe now: {reason}. To run in other processes, "
            f"module and data have to pickle: {error}. Run `itwinai check -c config.yaml`, or a script or test that "
            "starts no threads and no Ray before."
        ) from error
    write_whole(folder / f"{name}.request", packed)
    command = [*worker.python_that_runs("itwinai.checks.processes"), str(folder / f"{name}.request")]
    with ChildProcess(command, folder / f"{name}-caller.txt", tied=True) as child:
        child.wait(limit + STARTING, tick)
    if not answer.exists():
        raise RunFailedError("the process that was to run it has ended, or did not start", output=child.tail())
    returned = pickle.loads(answer.read_bytes())
    if isinstance(returned, RunFailedError):
        raise returned
    return list(returned)


def main() -> None:
    """Run the functions of a request in children of this process; its path is the argument."""
    worker.die_with_caller(os.dup(0))
    works, folder, limit, answer = pickle.loads(Path(sys.argv[1]).read_bytes())
    returned: Any
    try:
        returned = _run(works, folder, limit, lambda: None)
    except RunFailedError as error:
        returned = error
    write_whole(answer, cloudpickle.dumps(returned))


def _child(path: Path, work: Callable[[], Any]) -> Callable[[int], None]:
    """Return what the child does, given the pipe that keeps it alive."""

    def run(pipe: int) -> None:
        worker.die_with_caller(pipe)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        output = os.open(path.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)
        for name in ("stdout", "stderr"):  # whatever the caller, such as pytest, has put there
            setattr(sys, name, open(1, "w", buffering=1, closefd=False, errors="replace"))  # noqa: SIM115
        try:
            result = work()
            write_whole(path.with_suffix(".result"), cloudpickle.dumps(result))
            worker.leave_group()
        except BaseException as error:
            write_whole(path.with_suffix(".failure"), cloudpickle.dumps(Failure.of(0, error)))
            raise SystemExit(1) from None
        finally:
            _kill_all(lambda: descendants(os.getpid()))

    return run


def _wait(processes: Sequence[ForkedProcess], limit: float, tick: Callable[[], None]) -> bool:
    """Wait for processes, and return whether they ended in time; after a failure the others get a grace."""
    end = time.monotonic() + limit
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            end = min(end, time.monotonic() + GRACE)
        if time.monotonic() > end:
            return any(process.returncode for process in processes)
        tick()
        time.sleep(0.01)
    return True


def _ask_where_they_are(processes: Sequence[ForkedProcess]) -> None:
    """Let processes that are about to be ended print the lines where they are."""
    for process in processes:
        process.send_signal(signal.SIGQUIT)
    time.sleep(0.5)  # they print in a signal handler, and give no sign of its end


def _end(process: ForkedProcess) -> None:
    """Kill a process with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)  # it starts nothing more
        _kill_all(lambda: descendants(process.pid))
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process.stdin.close()


def _kill_all(find: Callable[[], list[int]]) -> None:
    for _ in range(200):
        if not (living := find()):
            return
        for pid in living:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def descendants(root: int) -> list[int]:
    """Return the ids of the living processes below another one, as Linux knows them."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(path.parent.name)] = int(parent)
    found: set[int] = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


def _results(processes: Mapping[str, ForkedProcess], folder: Path, limit: float, in_time: bool) -> list[Any]:
    failures = []
    for name in processes:
        if (path := folder / f"{name}.failure").exists():
            failures.append((pickle.loads(path.read_bytes()), name))
    if failures:
        failure, name = min(failures, key=lambda one: one[0].time)
        raise _failed(failure, _tail(folder / f"{name}.txt"))
    missing = [name for name in processes if not (folder / f"{name}.result").exists()]
    if missing:
        code = next((processes[name].returncode for name in missing if processes[name].returncode), 0) or 0
        output = _tail(folder / f"{missing[0]}.txt")
        if not in_time:
            at = next((at for name in missing if (at := _line_in(folder / f"{name}.txt"))), "")
            raise RunFailedError(f"it did not end within {limit:g} s", at=at, output=output)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RunFailedError(f"its process {how}", output=output)
    return [pickle.loads((folder / f"{name}.result").read_bytes()) for name in processes]


def _failed(failure: Failure, output: str) -> RunFailedError:
    error = failure.exception()
    users = [frame for frame in failure.raised[0].frames if shown(frame.file)]
    at = place(users[-1].file, users[-1].line) if users else ""
    return RunFailedError(f"{type(error).__name__}: {error}".strip(": "), failure, at, output)


def _line_in(path: Path) -> str:
    """Return the line of the user's that a process was in, of the traceback that it has printed last."""
    text = path.read_text(errors="replace") if path.exists() else ""
    for thread in text.split(" (most recent call first):\n")[1:]:
        for file, line in re.findall(r'^  File "(.+)", line (\d+) in ', thread, re.MULTILINE):
            if Path(file) == Path(__file__):
                break  # below is what has called the check
            if shown(file):
                return place(file, int(line))
    return ""


def _tail(path: Path, characters: int = 2000) -> str:
    return path.read_text(errors="replace")[-characters:].strip() if path.exists() else ""
