"""How far the build has come, as read from its output."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TextIO

from itwinai.cli.terminal import CLEAR_LINE

_PERCENT = re.compile(r"^\s*\[\s*(\d{1,3})%\] ")
_PHASES = (
    ("Collecting ", "downloading"),
    ("Preparing metadata", "preparing"),
    ("Running CMake in ", "configuring"),
    ("-- The CXX compiler identification", "configuring"),
    ("[100%] Built target pytorch", "packing"),
    ("running install_lib", "packing"),
)

_SILENCE = 60.0  # seconds without a line after which another one is written off a terminal


class BuildProgress:
    """Show how far a build has come: one changing line in a terminal, a few lines elsewhere."""

    def __init__(self, stream: TextIO, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._live, self._clock = stream, live, clock
        self._started = clock()
        self._shown, self._drawn, self._told = -10, "", clock()
        self.phase, self.percent = "starting", 0

    def feed(self, line: str) -> None:
        """Read one line of the build's output."""
        phase, percent = parse_phase(line), parse_percent(line)
        if percent is not None:
            self.percent = max(self.percent, percent)
            # seen: the two files at the end take as long as all before them
            self.phase = "compiling" if self.percent < 95 else "compiling the last files, the longest ones"
        if phase:
            self.phase = phase
        if not self._live and percent is not None and self.percent // 10 > self._shown // 10:
            self._tell()

    def tick(self) -> None:
        """Let the time move while a long file compiles: redraw the line in a terminal, write one a minute elsewhere."""
        if not self._live and self._clock() - self._told >= _SILENCE:
            self._tell()
        if self._live:
            percent = f"{self.percent:3d} %  " if self.percent else ""
            elapsed = format_duration(self._clock() - self._started)
            line = f"{CLEAR_LINE}  {percent}{self.phase}  {elapsed}"
            if line != self._drawn:
                self._drawn = line
                self._write(line)

    def finish(self) -> float:
        """Clear the line and return the seconds since the start."""
        if self._live:
            self._write(CLEAR_LINE)
        return self._clock() - self._started

    def _tell(self) -> None:
        self._shown, self._told = self.percent, self._clock()
        self._write(f"  {self.percent:3d} %  {format_duration(self._told - self._started)}  {self.phase}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def parse_percent(line: str) -> int | None:
    """Return the percentage at the start of a line of make's output, if there is one."""
    found = _PERCENT.match(line)
    return min(int(found[1]), 100) if found else None


def parse_phase(line: str) -> str | None:
    """Return the phase of the build that a line of its output begins, if it begins one."""
    text = line.strip()
    return next((phase for start, phase in _PHASES if text.startswith(start)), None)


def format_duration(seconds: float) -> str:
    """Write a duration as ``4 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
