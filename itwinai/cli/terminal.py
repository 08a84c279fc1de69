"""Lines that change in a terminal."""

from __future__ import annotations

import os
from typing import TextIO

CLEAR_LINE = "\r\x1b[K"


def is_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
