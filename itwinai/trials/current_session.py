"""Finding the session of the trial that code runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from itwinai.trials.ray_session import function_session
from itwinai.trials.session import TrialSession

# A context variable, where all else in this package is handed over: between the search, which knows the trial, and the
# `TuneReportCallback` and the trainer, which need to, is the user's own training function, which makes them without
# being told of any session. A thread or task that did not begin in the trial finds none.
_session: ContextVar[TrialSession | None] = ContextVar("the trial that runs here", default=None)


@contextmanager
def in_trial(session: TrialSession) -> Iterator[None]:
    """Let the callbacks that are created inside the context find a session.

    Args:
        session: of the trial that runs here.
    """
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def find_session() -> TrialSession | None:
    """Return the session of the trial that this code runs in: of `itwinai tune`, or of a function given to Ray Tune.

    Returns:
        The session; None outside of trials.
    """
    return _session.get() or function_session()
