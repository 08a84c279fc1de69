"""Run the build in a process group of its own, with all its output in a log."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run_logged(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> int:
    """Run a command in its own process group; when interrupted, kill the whole group.

    Args:
        command: the command.
        env: its environment.
        cwd: its working directory.
        log: the file that gets all its output.
        on_line: called with each line of output.
        on_tick: called after output, and every second without any.

    Returns:
        The exit code.
    """
    with log.open("wb") as sink:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            fd, pending = process.stdout.fileno(), b""
            while True:
                if select.select([fd], [], [], 1)[0]:
                    chunk = os.read(fd, 65536)
                    if not chunk:
                        break
                    sink.write(chunk)
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        on_line(line.decode(errors="replace"))
                elif process.poll() is not None:
                    break  # some daemon that the build started still holds the pipe
                on_tick()
            return process.wait()
        except BaseException:
            _kill_group(process)
            raise
        finally:
            process.stdout.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all it started, and wait until they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # each compiler holds the pipe: its end says that the last one is gone
    assert process.stdout is not None
    fd = process.stdout.fileno()
    while select.select([fd], [], [], 5)[0] and os.read(fd, 65536):
        pass
