"""A file with one JSON object per line, which can be read while it is written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """Appends records to a file, each as one line, and the lines of some time in one write.

    The file is open only while it is written, so that this object can be pickled, and copied into other processes.

    Args:
        path: of the file; it is continued if it exists.
        seconds: longest time for which a record waits for others, once the next one comes.
        records: number of records that are written in any case.
    """

    def __init__(self, path: Path, seconds: float, records: int) -> None:
        self.path = path
        self.seconds = seconds
        self.records = records
        self._lines: list[str] = []
        self._written = float("-inf")
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        self._lines.append(json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n")
        if len(self._lines) >= self.records or time.monotonic() - self._written >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            with self.path.open("ab") as file:
                file.write("".join(self._lines).encode())
            self._lines = []
        self._written = time.monotonic()


def _cut_torn_line(path: Path) -> None:
    """Remove half a line, which a machine that went down has left at the end of a file."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    from itwinai.warn import warn_user  # it imports Lightning

    warn_user(f"The last line of {path} was cut off, by a full disk or a machine that went down; it was removed.")
