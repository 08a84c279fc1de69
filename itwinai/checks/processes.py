"""Functions that run in child processes with a time limit, of which nothing is left.

A child is a copy of this process (a fork), so that it has the user's objects whether or not they can be pickled, and
has imported everything. What it starts is found and killed with it: children of children stay in its tree, even if
their own parents have ended.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from itwinai.compat import python as compat_python
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.launchers import worker
from itwinai.launchers.environment import RankInfo
from itwinai.launchers.fork import ForkedProcess, fork, why_not_fork
from itwinai.launchers.local import free_port, loopback_interface
from itwinai.launchers.worker_failure import Failure

GRACE = 12.0
"""Seconds that the others have after the first failure of a group: a worker that waits for another one notices it."""

_PR_SET_CHILD_SUBREAPER = 36


class RunFailedError(Exception):
    """A child process has ended without a result.

    Attributes:
        summary: one line: the exception, the signal that ended it, or its time limit.
        error: the exception, if there was one.
        at: the line of the user's code where it was raised, as ``model.py:12``; empty if it is not known.
        timed_out: whether it was ended at its time limit.
        output: the end of what it has printed.
    """

    def __init__(
        self, summary: str, error: BaseException | None = None, at: str = "", timed_out: bool = False, output: str = ""
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.error = error
        self.at = at
        self.timed_out = timed_out
        self.output = output

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.summary, None, self.at, self.timed_out, self.output)


def check_forkable() -> None:
    """Raise an error where copies of this process cannot run.

    Raises:
        ConfigurationError: they cannot; the message says why.
    """
    if (reason := why_not_fork()) is not None:
        raise ConfigurationError(
            f"Checks run in copies of this process, and that is not safe now: {reason}. Run them in a fresh process: "
            "`itwinai check -c config.yaml`, or a script or test that starts no threads and no Ray before."
        )


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
    check_forkable()
    files = compat_python.objects_of(*worker.FILES)
    worker.flush(files)
    handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_DFL}
    processes: dict[str, ForkedProcess] = {}
    try:
        for name, work in works.items():
            path = folder / name
            processes[name] = fork(_child(path, work), handlers, [*processes.values()], files)
        in_time = _wait(list(processes.values()), limit, tick)
    finally:
        for process in processes.values():
            _end(process)
    return _results(processes, folder, limit, in_time)


def _child(path: Path, work: Callable[[], Any]) -> Callable[[int], None]:
    """Return what the child does, given the pipe that keeps it alive."""

    def run(pipe: int) -> None:
        worker.die_with_caller(pipe)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        output = os.open(path.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
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
            raise RunFailedError(f"it did not end within {limit:g} s", timed_out=True, output=output)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RunFailedError(f"its process {how}", output=output)
    return [pickle.loads((folder / f"{name}.result").read_bytes()) for name in processes]


def _failed(failure: Failure, output: str) -> RunFailedError:
    from itwinai.checks.source_lines import place, shown

    error = failure.exception()
    if isinstance(error, RunFailedError):  # of a child of the child
        return error
    users = [frame for frame in failure.raised[0].frames if shown(frame.file)]
    at = place(users[-1].file, users[-1].line) if users else ""
    return RunFailedError(f"{type(error).__name__}: {error}".strip(": "), error, at, output=output)


def _tail(path: Path, characters: int = 2000) -> str:
    return path.read_text(errors="replace")[-characters:].strip() if path.exists() else ""
