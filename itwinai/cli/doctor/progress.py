"""The line that says what the doctor is doing."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from itwinai.cli.terminal import CLEAR_LINE, is_live


class ProgressLine:
    """One line in a terminal that says what is being done, and for how long; nothing elsewhere.

    Args:
        stream: where the line goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = is_live(stream)
        self._drawn = ""
        self.start("")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def start(self, task: str) -> None:
        """Show the name of the current step."""
        self._task, self._started = task, time.monotonic()

    def tick(self) -> None:
        """Redraw the line if it has changed."""
        line = f"  {self._task} ... {time.monotonic() - self._started:.0f} s"
        if self._live and line != self._drawn:
            # Longer than the terminal is wide, it would break into two, of which only one could be cleared.
            self._write(f"{CLEAR_LINE}{line[: shutil.get_terminal_size().columns - 1]}")
            self._drawn = line

    def clear(self) -> None:
        """Clear the line."""
        if self._drawn:
            self._write(CLEAR_LINE)
            self._drawn = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
