"""Leave out lines that a library in C++ prints on the standard error."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def without_lines(*starts: bytes) -> Iterator[None]:
    """Leave out the lines of this process's standard error that begin in some ways; all others come when this ends.

    Until then the standard error of the whole process is a file, for all its threads: use it for milliseconds only.

    Args:
        *starts: what the lines begin with.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(STDERR)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as printed:
        try:
            os.dup2(printed.fileno(), STDERR)
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
            printed.seek(0)
            _write(b"".join(line for line in printed if not line.startswith(starts)))


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(STDERR, text) :]
