"""How a worker's exception reaches the caller: with its traceback, and the first of several."""

from __future__ import annotations

import pickle
import time
import traceback
from dataclasses import dataclass, field

import cloudpickle

from itwinai.errors import WorkerError
from itwinai.tracebacks import Frame, add_note, chain, frames_of, hide_framework_frames, traceback_of


@dataclass(frozen=True)
class Raised:
    """An exception in a form that can be sent.

    Attributes:
        summary: its type and message.
        frames: its traceback, the outermost first.
        pickled: the exception itself, or None if it cannot be pickled.
        is_cause: whether the one that is printed below it was raised from it, or while it was handled.
    """

    summary: str
    frames: list[Frame]
    pickled: bytes | None
    is_cause: bool

    def exception(self, rank: int) -> BaseException:
        """Return the exception with its traceback.

        Args:
            rank: that of the worker, for exceptions that cannot be sent themselves.
        """
        error: BaseException
        if self.pickled is None:
            error = WorkerError(f"rank {rank} failed: {self.summary}")
        else:
            error = pickle.loads(self.pickled)
        return error.with_traceback(traceback_of(self.frames))


@dataclass(frozen=True)
class Failure:
    """An exception that ended a worker, in a form that can be sent.

    Attributes:
        rank: the worker's global rank.
        text: the traceback as text.
        raised: the exception, and those behind it.
        time: when it happened, in seconds since the epoch, to find the first of several failures.
        trace: what the run has changed until then, where it does not travel in a file of its own.
    """

    rank: int
    text: str
    raised: list[Raised]
    time: float = field(default_factory=time.time)
    trace: bytes | None = None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """Describe an exception that was just raised in the worker of a rank."""
        summaries = ["".join(traceback.format_exception_only(one)).strip() for one in chain(error)]
        hide_framework_frames(error)
        raised, below = [], None
        for summary, one in zip(summaries, chain(error), strict=True):
            is_cause = below is not None and below.__cause__ is one
            raised.append(Raised(summary, frames_of(one.__traceback__), _pickled(one), is_cause))
            below = one
        return cls(rank, "".join(traceback.format_exception(error)), raised)

    @property
    def summary(self) -> str:
        """Type and message of the exception."""
        return self.raised[0].summary

    def exception(self, names_rank: bool = True) -> BaseException:
        """Return the worker's exception as if it had been raised here.

        Args:
            names_rank: add a note that says on which rank it was.
        """
        errors = [one.exception(self.rank) for one in self.raised]
        for below, above, description in zip(errors, errors[1:], self.raised[1:], strict=False):
            below.__cause__ = above if description.is_cause else None
            below.__suppress_context__ = description.is_cause
            below.__context__ = above
        if names_rank:
            add_note(errors[0], f"[rank {self.rank}]")
        return errors[0]


class WorkerGroupError(Exception):
    """Raised by a launcher's supervision when the group has ended without a result.

    Args:
        error: what the caller sees.
        trace: what the run has changed until then, if a worker could tell.
    """

    def __init__(self, error: BaseException, trace: bytes | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.trace = trace


def _pickled(error: BaseException) -> bytes | None:
    try:
        pickled = cloudpickle.dumps(error)
        pickle.loads(pickled)  # exceptions with constructors of their own often pickle, but do not unpickle
    except Exception:  # the caller gets the text instead
        return None
    return pickled
