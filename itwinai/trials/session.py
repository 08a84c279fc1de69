"""The trial that a training run is part of, as the run sees it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from itwinai.trials.channel import Address, Channel, ChannelClosedError

if TYPE_CHECKING:
    from itwinai.launchers.ray_worker_pool import RayWorkerPool


class Decision(str, Enum):
    """What the search says to a report."""

    CONTINUE = "continue"
    SAVE = "save"
    """Save a checkpoint of this moment, say where it is, and ask again."""
    STOP = "stop"


class TrialSession(Protocol):
    """What a run can say to the search. Only rank 0 talks."""

    folder: str
    """Where the trial's checkpoints go: a path or URL that all nodes of the search can reach."""

    resume_path: str | None
    """The checkpoint that the run has to resume from: the trial's own, or the one that PBT has copied."""

    worker_pool: RayWorkerPool | None
    """Ray workers that the trials of an actor use one after the other, if there are any."""

    def report(
        self, number: int, metrics: Mapping[str, float], checkpoint: str, best: str, again: bool = False
    ) -> Decision:
        """Report metrics, and wait for what the search says.

        Args:
            number: 1 for the first report of this trial, or of the one whose checkpoint it has copied.
            metrics: the values.
            checkpoint: path of a checkpoint of this moment; empty if there is none.
            best: path of the trial's best checkpoint so far; empty if there is none.
            again: whether this is what was reported last before the run was resumed.
        """

    def saved(self, checkpoint: str, best: str) -> Decision:
        """Say where the checkpoint is that `Decision.SAVE` has asked for, and wait for what the search says."""


class RemoteSession:
    """A session whose other end is in another process.

    Args:
        address: of the process that the search talks to.
        folder: see `TrialSession`.
        resume_path: see `TrialSession`.
    """

    def __init__(self, address: Address, folder: str, resume_path: str | None = None) -> None:
        self.address = address
        self.folder = folder
        self.resume_path = resume_path
        self.worker_pool: RayWorkerPool | None = None
        self._channel: Channel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_channel": None, "worker_pool": None}

    def report(
        self, number: int, metrics: Mapping[str, float], checkpoint: str, best: str, again: bool = False
    ) -> Decision:
        """Report metrics, and wait for what the search says."""
        values = dict(metrics)
        return self._ask({"number": number, "metrics": values, "checkpoint": checkpoint, "best": best, "again": again})

    def saved(self, checkpoint: str, best: str) -> Decision:
        """Say where the checkpoint is that was asked for."""
        return self._ask({"saved": checkpoint, "best": best})

    def _ask(self, message: dict[str, Any]) -> Decision:
        if self._channel is None:
            self._channel = Channel.to(self.address)
        try:
            self._channel.send(message)
            answer = self._channel.receive()
        except ChannelClosedError:  # the search has ended, and this process will be ended too
            return Decision.STOP
        assert answer is not None
        return Decision(answer["decision"])
