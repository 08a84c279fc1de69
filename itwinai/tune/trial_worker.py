"""The process in which a trial trains: forked off one that has imported everything, and gone when the trial ends."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING

# So that they are imported in the fork server.
import itwinai.callbacks.tune_report
import itwinai.config.lightning_cli
import itwinai.tune.space
import itwinai.tune.train_functions
import itwinai.tune.trial_loggers  # noqa: F401
from itwinai.checkpoints.discovery import newest_valid
from itwinai.checkpoints.naming import trial_folder
from itwinai.trials.current_session import in_trial
from itwinai.tune.trial_spec import Assignment

if TYPE_CHECKING:
    from itwinai.launchers.environment import RankInfo


def run(packed: bytes, rank_info: RankInfo | None, on_failure: Callable[[BaseException], None], traced: bool) -> None:
    """Do what an assignment says, as the entry of a forked process; see `itwinai.launchers.worker`.

    Args:
        packed: the pickled assignment.
        rank_info: none: this is not a worker of a group, but it may launch some.
        on_failure: called with an exception at once.
        traced: without effect: what the run changes is not needed afterwards.
    """
    train(pickle.loads(packed))


def train(assignment: Assignment) -> None:
    """Do what an assignment says, in this process."""
    session = assignment.session
    session.resume_path = _present(session.resume_path, session.folder)
    body = pickle.loads(assignment.body_for)(assignment.drawn, assignment.name, session.folder, session.resume_path)
    with in_trial(session):
        body(session)


def _present(path: str | None, folder: str) -> str | None:
    """Return the checkpoint to resume from.

    It is the newest valid one of the trial's own, if the search knows of none, as after it was killed, or of one that
    was removed when a newer was saved.
    """
    if path is not None and _exists(path):
        return path
    return newest_valid([trial_folder(folder)])


def _exists(path: str) -> bool:
    from fsspec.core import url_to_fs

    filesystem, place = url_to_fs(path)
    return bool(filesystem.exists(place))
