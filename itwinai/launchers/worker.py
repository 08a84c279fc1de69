"""A process of a local launcher: forked off a fork server, or started with a folder and a rank.

It reads its ranks and the payload from the folder, runs the payload, and leaves a result or a failure there. It dies
with its caller: its standard input is a pipe that the caller never writes to, and that closes when the caller is gone.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import pickle
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle

from itwinai.io.atomic import write_whole
from itwinai.quick_imports import importing_quickly
from itwinai.unify import unify_if_asked

if TYPE_CHECKING:  # importing it takes seconds, and this process has to watch its caller before that
    from itwinai.launchers.environment import RankInfo


@dataclass(frozen=True)
class Start:
    """What a worker must know before it can unpickle the payload.

    Attributes:
        sys_path: the caller's import path, so that modules beside the caller's script are found.
        folder: the caller's working folder.
        variables: the environment variables of the worker.
        rank_infos: the ranks of all workers of this launch, by global rank. None for a process that is not
            a worker of a group.
        entry: what runs the payload, as ``module:function``, with the arguments of
            `itwinai.launchers.payload.run_packed`.
    """

    sys_path: list[str]
    folder: str
    variables: dict[str, str]
    rank_infos: Mapping[int, RankInfo | None]
    entry: str = "itwinai.launchers.payload:run_packed"


TRACE = "itwinai_trace"
"""The attribute of an exception that holds what the run has changed until then, as `StateDiff.trace` gives it."""


def python_that_runs(module: str) -> list[str]:
    """Return the command that calls ``main`` of a module, which is found where this process finds it.

    ``python -m`` would look into the current folder first, and there may be a ``queue.py``.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module} as module; module.main()"
    return [sys.executable, "-c", code]


def die_with_caller(pipe: int) -> None:
    """Kill this process and its children as soon as the other end of a pipe is closed."""

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="itwinai-caller-watch", daemon=True).start()


def main() -> None:
    """Be the worker that the command line tells of: its folder, and its rank."""
    run_in(Path(sys.argv[1]), int(sys.argv[2]))


def run_in(folder: Path, rank: int) -> None:
    """Run the payload of a folder as the worker of a rank."""
    die_with_caller(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    start: Start = pickle.loads((folder / "start.pickle").read_bytes())
    sys.path[:] = start.sys_path
    os.chdir(start.folder)
    rank_info = start.rank_infos[rank]

    def run(report: Callable[[BaseException], None]) -> Any:
        module, _, name = start.entry.partition(":")
        with importing_quickly():
            entry = getattr(import_module(module), name)
        packed = (folder / "payload.pickle").read_bytes()
        # With several nodes each has a caller of its own.
        return entry(packed, rank_info, report, traced=rank_info is not None and rank_info.local_rank == 0)

    work(folder, rank, rank_info, start.variables, run)


def work(
    folder: Path,
    rank: int,
    rank_info: RankInfo | None,
    variables: Mapping[str, str],
    run: Callable[[Callable[[BaseException], None]], Any],
) -> None:
    """Do a worker's work in this process, and leave the result or the failure in a folder.

    Args:
        folder: of the launch.
        rank: which worker.
        rank_info: its ranks in the group, if it is in one.
        variables: the environment variables of this process from now on.
        run: what to do. It is given what to call at once with an exception, and returns the result.
    """
    os.environ.clear()
    os.environ.update(variables)
    unify_if_asked()
    if rank_info is not None:
        os.environ.update(rank_info.variables())

    from itwinai.launchers.worker_failure import Failure

    own = os.getpid()
    reported = False

    def report(error: BaseException) -> None:
        nonlocal reported
        if not reported:  # the first failure is the cause of those that follow
            reported = True
            write_whole(folder / f"failure-{rank}.pickle", cloudpickle.dumps(Failure.of(rank, error)))

    try:
        result = run(report)
        write_whole(folder / f"result-{rank}.pickle", _packed(result))
    except BaseException as error:
        if os.getpid() != own:  # a process that was forked off this one, and ends
            raise
        report(error)
        if (trace := vars(error).pop(TRACE, None)) is not None:
            write_whole(folder / f"trace-{rank}.pickle", trace)
        raise SystemExit(1) from None  # the caller prints it
    leave_group()


def _packed(result: Any) -> bytes:
    try:
        return cloudpickle.dumps(result)
    except Exception as error:  # the user's own __reduce__ and __getstate__ run here: anything can come
        from itwinai.errors import PayloadError

        raise PayloadError(
            f"The return value cannot be sent back to the calling process: {error}. Return tensors, numbers, strings, "
            "and lists and dictionaries of them."
        ) from error


def leave_group() -> None:
    """Leave the process group, if the strategy has formed one: NCCL complains of those that are left open."""
    import torch.distributed as dist

    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # forgets its own groups too, which the next run would ask
    elif dist.is_initialized():
        dist.destroy_process_group()


def leave_group_of_sockets() -> None:
    """Leave a process group after a failure if that closes connections, by which the others notice it.

    That of NCCL may wait for the others instead.
    """
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def exit_at_once(code: int = 0, files: Iterable[Any] = ()) -> NoReturn:
    """End this process as the interpreter would, but for tidying up its memory.

    That takes seconds in a forked process, which by it gets a copy of each page that it has shared.

    Args:
        code: the exit code.
        files: those that were open before a fork; the others are found.
    """
    from itwinai.compat import python as compat_python

    compat_python.run_threads_exit_functions()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    compat_python.run_exit_functions()
    flush((*files, sys.stdout, sys.stderr, *compat_python.objects_of(*FILES)))
    os._exit(code)


def exit_soon() -> None:
    """Let this process end without taking apart all that was imported, once its exit functions have run.

    With torch and Lightning that takes seconds, for which the shell or the next step of a pipeline would wait. What the
    run has made is destroyed as ever; what modules hold is not. Exit functions run, those of C libraries too. Call it
    before anything else registers an exit function: the first one registered runs last.
    """

    def leave_modules() -> None:
        if "torch" not in sys.modules:
            return
        import torch.distributed as dist

        from itwinai.compat import python as compat_python

        if dist.is_available() and dist.is_initialized():  # as taken apart, the group ends its threads
            return
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):  # an error that has ended the run
            vars(sys).pop(name, None)
        gc.collect()
        flush(filter(_is_regular, compat_python.objects_of(*FILES)))  # those that modules hold
        gc.disable()
        gc.freeze()

    atexit.register(leave_modules)


def _is_regular(file: Any) -> bool:
    """Return whether an open file is one on a disk; of others a thread may wait for a reader, and hold their lock."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or no file of the system
        return False


FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
"""The classes of open files that have a buffer."""


def flush(files: Iterable[Any]) -> None:
    """Write what waits in the buffers of files: a copy of it would be written twice, or be lost."""
    for file in files:
        with suppress(OSError, ValueError, AttributeError):  # closed, or a stream of the script's own
            file.flush()
