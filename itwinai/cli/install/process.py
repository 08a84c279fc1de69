"""Run the build with all its output in a log."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from itwinai.launchers.child_process import ChildProcess


def run_logged(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> int:
    """Run a command and return its exit code; when interrupted, end it with all it started.

    Args:
        command: the command.
        env: its environment.
        cwd: its working directory.
        log: the file that gets all its output.
        on_line: called with each line of output.
        on_tick: called several times a second.
    """

    def tick() -> None:
        for line in child.new_lines():
            on_line(line)
        on_tick()

    with ChildProcess(command, log, env=env, cwd=cwd, heading=f"$ {shlex.join(command)}\n") as child:
        child.wait(tick=tick)
        tick()
        return child.code or 0
