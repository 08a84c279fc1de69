"""How a worker's exception reaches the caller: with its traceback, and the first of several."""

from __future__ import annotations

import pickle
import time
import traceback
from dataclasses import dataclass, field

import cloudpickle

from itwinai.errors import WorkerError


class RemoteTraceback(Exception):
    """The traceback of a worker, which Python prints above the exception that it caused on the caller."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Failure:
    """An exception that ended a worker, in a form that can be sent.

    Attributes:
        rank: the worker's global rank.
        text: the traceback as text.
        summary: type and message of the exception.
        pickled: the exception itself, or None if it cannot be pickled.
        time: when it happened, in seconds since the epoch, to find the first of several failures.
    """

    rank: int
    text: str
    summary: str
    pickled: bytes | None
    time: float = field(default_factory=time.time)

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """Describe an exception that was just raised in the worker of a rank."""
        return cls(
            rank=rank,
            text="".join(traceback.format_exception(error)),
            summary="".join(traceback.format_exception_only(error)).strip(),
            pickled=_pickled(error),
        )

    def exception(self) -> BaseException:
        """Return the worker's exception, with its traceback as the cause that Python prints first."""
        if self.pickled is None:
            error: BaseException = WorkerError(f"rank {self.rank} failed: {self.summary}")
        else:
            error = pickle.loads(self.pickled)
        error.__cause__ = RemoteTraceback(f"\nTraceback of rank {self.rank}:\n\n{self.text}")
        return error


class WorkersFailed(Exception):
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
