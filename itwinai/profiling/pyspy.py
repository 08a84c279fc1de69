"""Sample where the Python side of a worker spends its time, with py-spy, which looks at the process from outside."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.io.atomic import part_name, remove_parts
from itwinai.profiling.collapsed_stacks import Function, top_functions
from itwinai.profiling.flame_graph import flame_graph

_PR_SET_PTRACER = 0x59616D61

_DENIALS = ("Permission Denied", "Operation not permitted", "requires root")

_FAILED = "Python stacks: py-spy could not sample them: {}."

_REFUSED = (
    "Python stacks: the system does not let py-spy read this process ({}). In a container, start it with the "
    "capability SYS_PTRACE (docker run --cap-add SYS_PTRACE, in Kubernetes securityContext.capabilities); on a machine "
    "of your own, set kernel.yama.ptrace_scope to 0 or 1."
)


class StackSampler:
    """Record the Python stacks of this process, many times a second, in a process of its own.

    The recorder reads the memory of this process and does not stop it. It ends when this process ends, however that
    happens. What it has recorded is read when it is stopped: the stacks as text, one line for each stack and its number
    of samples, and a flame graph drawn from them.

    Args:
        folder: for the files.
        rank: of this worker, for the names of the files.
        rate: samples per second. At 50 a function that takes a hundredth of half a minute is still seen 15 times.
        duration: seconds after which the recorder ends, rounded up; None records until `stop`. Half a minute shows a
            training loop as well as a day, and memory and cost stay small.
        threads: tell threads apart: each stack begins with the name of its thread.
        native: follow the stacks into code in C and C++. This process is then stopped for each sample, and threads that
            wait may be counted as running.
        idle: count threads that wait as well, as for data or for other workers. Otherwise only what runs is counted.
        lines: tell the lines of a function apart. Otherwise a function is shown by the line in which it begins.

    Attributes:
        collapsed: the stacks; None if there are none. `itwinai.profiling.collapsed_stacks` reads them.
        functions: those that ran themselves most often.
        stacks: the file with the stacks.
        flame_graph: the drawing, an SVG.
        missing: why there are no stacks; empty if there are, or as long as nothing is known.

    Raises:
        ConfigurationError: the rate or the duration is not above 0.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        rate: int = 50,
        duration: float | None = 30.0,
        threads: bool = False,
        native: bool = False,
        idle: bool = False,
        lines: bool = False,
    ) -> None:
        if rate < 1 or (duration is not None and duration <= 0):
            raise ConfigurationError(f"StackSampler(rate={rate}, duration={duration}): both must be above 0.")
        self.folder = Path(folder)
        self.rank = rank
        self.options = ["--rate", str(rate)]
        self.options += ["--duration", str(math.ceil(duration))] if duration is not None else []
        self.options += ["--threads"] if threads else []
        # The process is not stopped for a sample: that costs time, and py-spy then takes threads that wait for running
        # ones. Only code in C cannot be followed in a process that runs.
        self.options += ["--native"] if native else ["--nonblocking"]
        self.options += ["--idle"] if idle else []
        self.options += [] if lines else ["--function"]
        self.collapsed: str | None = None
        self.functions: list[Function] = []
        self.stacks: Path | None = None
        self.flame_graph: Path | None = None
        self.missing: list[str] = []
        self._recorder: subprocess.Popen[bytes] | None = None
        self._part = self._log = self.folder

    def start(self) -> None:
        """Start the recorder, and wait until it samples: a fraction of a second.

        If the system does not allow it, a warning says why, and `missing` as well.

        Raises:
            MissingPackageError: py-spy is not installed.
            OSError: the folder cannot be created.
        """
        if self._recorder is not None:
            return
        self.collapsed, self.functions, self.stacks, self.flame_graph, self.missing = None, [], None, None, []
        command = _find_py_spy()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)
        self._part = self.folder / part_name(f"stacks-rank-{self.rank}.txt")
        self._log = self.folder / part_name(f"py-spy-rank-{self.rank}.log")
        with self._log.open("w") as log:  # no pipe: a thread would have to read it
            self._recorder = subprocess.Popen(
                [command, "record", "--pid", str(os.getpid()), "--format", "raw", "--output", str(self._part)]
                + ["--full-filenames", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the run; the recorder is told by `stop`
            )
        _allow_tracing(self._recorder.pid)
        deadline = time.monotonic() + 10
        while "Sampling process" not in self._log.read_text() and time.monotonic() < deadline:
            if self._recorder.poll() is not None:
                self.stop()
                return
            time.sleep(0.01)

    def stop(self, timeout: float = 10.0) -> None:
        """End the recorder, and read what it has recorded.

        May be called at any time, and twice.

        Args:
            timeout: seconds that the recorder has for writing its file.
        """
        if self._recorder is None:
            return
        if self._recorder.poll() is None:
            self._recorder.send_signal(signal.SIGINT)  # as Ctrl-C does: it writes what it has
        try:
            self._recorder.wait(timeout)
        except subprocess.TimeoutExpired:
            self._recorder.kill()
            self._recorder.wait()
        self._recorder = None
        try:
            self._collect()
        except OSError as error:
            self._say(f"Python stacks: they could not be written: {error}.")
        finally:
            self._part.unlink(missing_ok=True)
            self._log.unlink(missing_ok=True)

    def _collect(self) -> None:
        """Read what the recorder has written, and put it in its place."""
        collapsed = self._part.read_text(errors="replace") if self._part.exists() else None
        if collapsed:
            self.collapsed = collapsed
            self.functions = top_functions(collapsed)
            self.stacks = self._part.replace(self.folder / f"stacks-rank-{self.rank}.txt")
            self._part.write_text(flame_graph(collapsed, f"Python functions of rank {self.rank}"))
            self.flame_graph = self._part.replace(self.folder / f"flame-graph-rank-{self.rank}.svg")
        elif collapsed == "":
            self.missing.append("Python stacks: the run ended before the first sample, or nothing but waiting was seen")
        else:
            printed = self._log.read_text(errors="replace")
            refused = [line.strip() for line in printed.splitlines() if any(words in line for words in _DENIALS)]
            reason = refused[0] if refused else " ".join(printed.split()[-60:]) or "it was killed"
            self._say((_REFUSED if refused else _FAILED).format(reason))

    def _say(self, what: str) -> None:
        self.missing.append(what)
        warnings.warn(f"{what} The run continues without.", stacklevel=4)


def _find_py_spy() -> str:
    """Return the command: that of this Python's environment, else one on the path."""
    command = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if command is None:
        raise MissingPackageError(
            "Sampling Python stacks needs the command py-spy, which is not installed here. "
            "Install it with `pip install 'itwinai[watch]'`."
        )
    return command


def _allow_tracing(pid: int) -> None:
    """Allow a process to trace this one, where Linux asks for that (kernel.yama.ptrace_scope=1).

    A system without that question refuses the call, and needs none.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)
