"""Failures of workers whose output srun or torchrun joins in one log: a block per rank, the first failure first."""

from __future__ import annotations

import re
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from itwinai.errors import ItwinaiError
from itwinai.tracebacks import add_note, hide_framework_frames, is_of_framework

if TYPE_CHECKING:
    import torch.distributed as dist

_TURN = "_itwinai_turn"
_COUNT, _PRINTED = "itwinai/failures", "itwinai/failures_printed"
_PATIENCE = 2.0
"""Seconds that a worker waits for those that have failed before it."""

_LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited|Connection refused")


@dataclass(frozen=True)
class _Turn:
    """When a worker may print its failure.

    Attributes:
        store: of the workers; rank 0 has it.
        rank: of the worker.
        place: among those that have failed, from 1.
    """

    store: dist.Store
    rank: int
    place: int

    def begin(self) -> str:
        """Wait until those before have printed; return the kind of the first failure, if that can be told."""
        with suppress(RuntimeError):  # the worker that has the store is gone
            if self.place > 1:
                self.store.wait([f"{_PRINTED}/{self.place - 1}"], timedelta(seconds=_PATIENCE))
                return self.store.get(f"{_PRINTED}/1").decode()
        return ""

    def end(self, kind: str) -> None:
        """Let the next one print. The worker that has the store stays until those have that have failed with it."""
        with suppress(RuntimeError):
            self.store.set(f"{_PRINTED}/{self.place}", kind)
            printed = self.store.add(_PRINTED, 1)
            first, last = time.monotonic() + 0.5, time.monotonic() + _PATIENCE
            while self.rank == 0 and time.monotonic() < (first if printed == self.store.add(_COUNT, 0) else last):
                time.sleep(0.05)
                printed = self.store.add(_PRINTED, 0)


def take_turn(error: BaseException, store: dist.Store, rank: int) -> None:
    """Let a failure be printed after those of other workers that have failed before.

    Args:
        error: what this worker raises.
        store: of all workers.
        rank: of this one.
    """
    if _TURN in vars(error):
        return
    try:
        place = store.add(_COUNT, 1)
    except RuntimeError:  # the worker that has the store is gone, and has failed before
        place = 2
    add_note(error, f"[rank {rank}]")
    vars(error)[_TURN] = _Turn(store, rank, place)
    # Torch's own one begins each line with the rank, and waits for no one. That of a debugger or a notebook stays.
    if sys.excepthook is sys.__excepthook__ or sys.excepthook.__module__.startswith("torch."):
        sys.excepthook = _hook


def report_failure(error: Exception) -> None:
    """Print what ended a command or a step: the user's code that failed, or the message where none of it has run.

    Args:
        error: what has ended it; its traceback loses the frames of frameworks.
    """
    hide_framework_frames(error)
    entry = error.__traceback__
    known = isinstance(error, ItwinaiError) or _is_lightnings(error)
    if known and (entry is None or is_of_framework(entry)):
        notes = [note for note in getattr(error, "__notes__", []) if note.startswith("[rank ")]
        print_failure(error, "\n".join([f"error: {error}", *notes]) + "\n")
    else:
        print_failure(error, "".join(traceback.format_exception(error)))


def _is_lightnings(error: Exception) -> bool:
    """Return whether Lightning refuses a configuration; to ask it, it would have to be imported."""
    return any(one.__name__ == "MisconfigurationException" for one in type(error).__mro__)


def print_failure(error: BaseException, text: str) -> None:
    """Print a failure as one piece: of a worker when it is its turn, and in a line if it follows from another's.

    Args:
        error: what has ended this process.
        text: what to print of it, with its end of line.
    """
    turn: _Turn | None = vars(error).get(_TURN)
    if turn is None:
        _write(text)
        return
    summary = f"{type(error).__name__}: {error}".splitlines()[0]
    kind = re.sub(r"\d+", "#", summary)
    first = turn.begin()
    if turn.place > 1 and kind == first:
        text = f"[rank {turn.rank}] likewise: {summary}\n"
    elif turn.place > 1 and (lost := _LOST.search(summary)):
        text = f"[rank {turn.rank}] has lost another worker: {type(error).__name__}: {lost[0]}\n"
    _write(text)
    turn.end(kind)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    print_failure(error, "".join(traceback.format_exception(kind, error, trace)))
