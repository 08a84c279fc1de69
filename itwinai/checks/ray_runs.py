"""Runs whose workers are Ray's: one Ray for all runs of a strategy, because it takes seconds to start."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

from itwinai.checks.session import WORKERS, Session
from itwinai.checks.subject import GivenObjects, Subject
from itwinai.checks.training import Run, Trained, train
from itwinai.launchers.payload import dumps
from itwinai.launchers.ray_init import connect

RESUMED_FROM = "last-step"


def ray_fits(session: Session, strategy: str) -> list[Trained]:
    """Return what a strategy of Ray makes of the run from the beginning, and of a checkpoint of the reference.

    Raises:
        RunFailedError: it has failed.
    """
    checkpoint = session.checkpoint(RESUMED_FROM) if RESUMED_FROM in session.reference().saved else None
    fits: list[Trained] = session.once(
        strategy,
        f"training under {strategy}",
        lambda: _fits(session.subject, session.root, strategy, checkpoint),
        limit=2 * session.limit,
    )
    return fits


def _fits(subject: Subject, root: str, strategy: str, checkpoint: Path | None) -> list[Trained]:
    connect(None, WORKERS)
    fits = [train(fresh(subject), Run(root, strategy, WORKERS))]
    if checkpoint is not None:
        fits.append(train(fresh(subject), Run(root, strategy, WORKERS, resume=str(checkpoint))))
    return fits


def fresh(subject: Subject) -> Subject:
    """Return a subject whose next module is one that has not been trained."""
    if not isinstance(subject, GivenObjects):
        return subject
    module, data = pickle.loads(dumps((subject.module, subject.data)))
    return replace(subject, module=module, data=data)
