"""Workers that are copies of the caller, forked when they are launched.

Everything that the caller has is there: nothing is pickled, nothing is imported again. A fork copies memory, and of the
threads only the one that forks. What other threads hold at that moment, such as a lock, is held forever in the copy,
and a GPU's driver refuses to work in it. So `why_not_fork` looks for threads and devices first.

The fork is made by a thread that was started for it. OpenMP, which computes torch's operators, keeps its pool of
threads with the thread that uses it: in a copy of the main thread it would wait for threads that are not there, whereas
a thread that has computed nothing has no pool, and its copy makes one of its own.
"""

from __future__ import annotations

import contextvars
import ctypes
import fcntl
import gc
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from itwinai.compat import python as compat_python
from itwinai.launchers.environment import in_notebook

# Threads that hold no lock while they wait, by the package of their class, or by their name.
_HARMLESS_PACKAGES = ("tqdm", "ipykernel", "IPython")
_HARMLESS_NAMES = ("itwinai-caller-watch",)
# Threads of the system without which a copy does as well: jemalloc prepares itself for forks, torch names the main
# thread. Those of OpenBLAS, which prepares itself too, and of OpenMP have the name of the program.
_HARMLESS_NATIVE = ("pt_main_thread", "jemalloc", "itwinai")
_CUDA_NOT_INITIALIZED = 3


def why_not_fork() -> str | None:
    """Return what makes it unsafe to fork this process now, or None if nothing does.

    It is looked for threads, by Python and by the system, for devices in use, and for groups of workers and clusters
    that this process has joined: all that a copy would have only half of.
    """
    if sys.platform != "linux":
        return f"{sys.platform}'s system libraries do not survive it"
    if (device := _device_in_use()) is not None:
        return f"{device} is in use in this process"
    if dist.is_available() and dist.is_initialized():
        return "this process has joined a torch.distributed group"
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        return "this process is connected to Ray"
    if (horovod := sys.modules.get("horovod.torch")) is not None and horovod.is_initialized():
        return "Horovod is initialized in this process"
    threads = [thread.name for thread in threading.enumerate() if not _is_harmless(thread)]
    if threads and in_notebook():
        return "a notebook runs threads"
    if threads:
        return f"another thread runs in this process ({', '.join(threads[:3])})"
    native = _named_native_threads()
    return f"threads of a library run in this process ({', '.join(native[:3])})" if native else None


def _device_in_use() -> str | None:
    for name in ("cuda", "xpu", "mps"):
        module = getattr(torch, name, None)
        if module is not None and getattr(module, "is_initialized", bool)():
            return name.upper()
    # Initialized by something else, or only asked for its devices: the driver then refuses to work in a copy.
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        count = ctypes.c_int()
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_NOT_INITIALIZED:
            return "CUDA"
    return None


def _is_harmless(thread: threading.Thread) -> bool:
    return (
        thread is threading.current_thread()
        or thread.name in _HARMLESS_NAMES
        or type(thread).__module__.partition(".")[0] in _HARMLESS_PACKAGES
    )


def _named_native_threads() -> list[str]:
    """Return the names of the system's threads that a library has named: it works with them."""
    tasks = Path("/proc/self/task")
    own = (tasks / str(os.getpid()) / "comm").read_text().strip()
    program = Path(sys.executable).name[:15]
    python = {thread.native_id for thread in threading.enumerate()}
    names = set()
    for task in tasks.iterdir():
        with suppress(FileNotFoundError):  # it has ended
            name = (task / "comm").read_text().strip()
            if int(task.name) not in python and name not in (own, program) and not name.startswith(_HARMLESS_NATIVE):
                names.add(name)
    return sorted(names)


class ForkedProcess:
    """A child that this process has forked, with the interface of `subprocess.Popen` as far as launchers need it.

    Args:
        pid: its process id.
        stdin: the end of a pipe that keeps it alive as long as it is open.
    """

    def __init__(self, pid: int, stdin: int) -> None:
        self.pid = pid
        self.stdin = os.fdopen(stdin, "wb", buffering=0)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the script waits for all children by itself
                self.returncode = 1
            else:
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while self.poll() is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


def fork(
    work: Callable[[int], None], handlers: Mapping[int, Any], earlier: Iterable[Any], files: Sequence[Any]
) -> ForkedProcess:
    """Fork this process; the copy does some work and ends.

    Args:
        work: is called in the copy with the reading end of the pipe that keeps it alive.
        handlers: signal handlers that the copy has instead of those of this moment.
        earlier: children of this launch, which the copy has nothing to do with.
        files: the files that are open in this process, with nothing in their buffers: see `flush`.

    Raises:
        OSError: there is no memory or no room for another process.
    """
    reading, writing = os.pipe()
    forked: list[int | OSError] = []

    def run() -> None:
        # What the copies share with this process is left alone by their garbage collection: whoever only looks at an
        # object gets a copy of its page. What the user has frozen stays so, which may not be told from ours later.
        freezes = gc.get_freeze_count() == 0
        if freezes:
            gc.freeze()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which were looked at
                pid = os.fork()
        except OSError as error:
            forked.append(error)
            return
        finally:
            if freezes and os.getpid() == own:
                gc.unfreeze()
        if pid == 0:
            inherited = [writing, *(child.stdin.fileno() for child in earlier)]
            _become_worker(work, reading, inherited, handlers, files)
        forked.append(pid)

    own = os.getpid()
    # With the context of the caller, in which libraries keep settings.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="itwinai-fork")
    thread.start()
    thread.join()
    os.close(reading)
    if isinstance(forked[0], OSError):
        os.close(writing)
        raise forked[0]
    return ForkedProcess(forked[0], writing)


def _become_worker(
    work: Callable[[int], None],
    reading: int,
    inherited: list[int],
    handlers: Mapping[int, Any],
    files: Sequence[Any],
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for descriptor in inherited:
            os.close(descriptor)
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        compat_python.forget_exit_functions()
        _read_files_alone()
        _use_own_streams()
        compat_python.print_recorded_warnings()
        work(reading)
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        from itwinai.launchers.worker import exit_at_once

        exit_at_once(code, files)


def _read_files_alone() -> None:
    """Open files that are open for reading once more, so that each copy has a place of its own in them.

    Copies share the place with the process that they come from: where two of them seek and read, each would get what
    the other one looks for. Files that are written to stay shared, so that nothing is written over.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if flags & os.O_ACCMODE != os.O_RDONLY or not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            place = os.lseek(descriptor, 0, os.SEEK_CUR)
            own = os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)
            os.lseek(own, place, os.SEEK_SET)
            os.dup2(own, descriptor, inheritable=os.get_inheritable(descriptor))
            os.close(own)


def _use_own_streams() -> None:
    """Print to where this process's output goes, if the caller has redirected its own to its memory.

    Other streams stay: ipykernel's sends what copies print to the notebook, and one of the script's own may write on.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if not isinstance(stream, (io.StringIO, io.TextIOWrapper)):
            continue
        try:
            stream.fileno()
        except (AttributeError, OSError, ValueError):
            setattr(sys, name, open(number, "w", buffering=1, closefd=False, errors="replace"))  # noqa: SIM115
