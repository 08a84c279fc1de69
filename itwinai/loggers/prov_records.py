"""What `ProvenanceLogger` keeps of a run, and where it finds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO, PortableConnector
from itwinai.checkpoints.discovery import AUTO
from itwinai.checkpoints.portable_file import Manifest
from itwinai.checkpoints.sharded import is_sharded, manifest_of
from itwinai.compat import lightning_checkpoints, lightning_dataloaders, lightning_trainer
from itwinai.errors import CheckpointError
from itwinai.run_info.serialization import plain_hyperparameters

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from itwinai.run_info.run import RunFacts

RUNNING = "running"


@dataclass(frozen=True)
class Metric:
    """What became of a metric.

    Attributes:
        value: the last one.
        step: of the last value; None if it was logged without one.
        time: of the last value, in seconds since 1970.
        points: number of values.
    """

    value: float
    step: int | None
    time: float
    points: int


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint as it was found.

    Attributes:
        path: of the file or folder.
        role: "best", "last", or empty.
        size: in bytes; None if it is not there yet, or not on this machine.
        manifest: what its manifest says; None if it has none.
        seen: by what to know whether it has been replaced since: inode and time of modification.
    """

    path: str
    role: str = ""
    size: int | None = None
    manifest: Manifest | None = None
    seen: tuple[int, int] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is not in a folder of this machine."""
        return "://" in self.path

    def exists(self) -> bool:
        """Return whether it is in its folder; of one elsewhere that is not asked."""
        return self.is_remote or Path(self.path).exists()

    def looked_up(self) -> SavedCheckpoint:
        """Return it with its size and its manifest, as it is there now."""
        if self.is_remote:
            return self
        place = Path(self.path)
        try:
            status = place.stat()
            seen = status.st_ino, status.st_mtime_ns
            if seen == self.seen:
                return self
            return replace(self, size=_size_of(place), manifest=_manifest_of(place), seen=seen)
        except FileNotFoundError:  # not there yet, or removed in this very moment
            return self


@dataclass
class Attempt:
    """One fit of a run, with what was evaluated after it.

    Attributes:
        began: in seconds since 1970.
        ended: the same; None while it runs.
        status: "running", or what Lightning says of the end: "success", "failed", "finished".
        facts: where it runs, with which code and versions.
        hyperparameters: plain values without secrets.
        data: class and arguments of the datamodule, or what can be told of the loaders.
        resumed_from: the checkpoint that it resumed from.
        metrics: by name.
        checkpoints: by path, for each callback that saves some.
        earlier_end: status and end before it was opened again.
    """

    began: float
    ended: float | None = None
    status: str = RUNNING
    facts: RunFacts | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    resumed_from: SavedCheckpoint | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, SavedCheckpoint]] = field(default_factory=dict)
    earlier_end: tuple[str, float | None] | None = None

    def reopen(self) -> None:
        """Continue after the end, as with an evaluation of what was trained."""
        self.earlier_end = self.status, self.ended
        self.status, self.ended = RUNNING, None

    def close_again(self) -> None:
        """Take back that it was opened again, because what has come belongs to the next attempt."""
        if self.status == RUNNING and self.earlier_end is not None:
            self.status, self.ended = self.earlier_end

    def add_value(self, name: str, value: float, step: int | None, now: float) -> None:
        """Take the next value of a metric."""
        points = self.metrics[name].points if name in self.metrics else 0
        self.metrics[name] = Metric(value, step, now, points + 1)

    def add_checkpoints(self, callback: str, roles: Mapping[str, str]) -> None:
        """Take what a callback keeps now; of what it has saved before, what is still there.

        Args:
            callback: its key.
            roles: by path: "best", "last", or empty.
        """
        before = self.checkpoints.get(callback, {})
        kept = {path: replace(old, role="") for path, old in before.items() if path not in roles and old.exists()}
        self.checkpoints[callback] = kept | {
            path: replace(before.get(path) or SavedCheckpoint(path), role=role) for path, role in roles.items() if path
        }

    def look_up_checkpoints(self) -> None:
        """Find out size and manifest of those that are there."""
        for callback, saved in self.checkpoints.items():
            self.checkpoints[callback] = {path: checkpoint.looked_up() for path, checkpoint in saved.items()}

    def drop_removed_checkpoints(self) -> None:
        """Forget those that are not there, once nothing is being written any more."""
        for callback, saved in self.checkpoints.items():
            self.checkpoints[callback] = {path: checkpoint for path, checkpoint in saved.items() if checkpoint.exists()}

    def all_checkpoints(self) -> Iterable[SavedCheckpoint]:
        """Return the checkpoints of all callbacks."""
        return {path: checkpoint for saved in self.checkpoints.values() for path, checkpoint in saved.items()}.values()


def _size_of(place: Path) -> int:
    files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files)


def _manifest_of(place: Path) -> Manifest | None:
    if place.is_dir() and not is_sharded(place):
        return None
    try:
        return manifest_of(place)
    except CheckpointError:  # damaged, or of another version: loading it raises the error
        return None


def wait_for_checkpoints(trainer: Trainer) -> None:
    """Wait until everything is written. Asks no other worker."""
    plugin = trainer.strategy.checkpoint_io
    if isinstance(plugin, PortableCheckpointIO):
        plugin.wait()


def resumed_from(trainer: Trainer) -> str | None:
    """Return the path of the checkpoint that a fit resumes from; None if there is none, or it is not known yet."""
    if trainer.state.fn != "fit":
        return None
    connector = lightning_checkpoints.checkpoint_connector(trainer)
    selected = connector.selected if isinstance(connector, PortableConnector) else trainer.ckpt_path
    return None if selected is None or str(selected) == AUTO else str(selected)


def data_of(trainer: Trainer) -> dict[str, Any]:
    """Return the class and the arguments of the datamodule, or what can be told of the training loaders."""
    module = lightning_trainer.datamodule(trainer)
    if module is not None:
        return {**plain_hyperparameters(dict(module.hparams)), "class": _class_of(module)}
    facts: dict[str, Any] = {}
    for number, loader in enumerate(lightning_dataloaders.training_loaders(trainer)):
        prefix = f"loader_{number}." if number else ""
        dataset: Any = getattr(loader, "dataset", None)
        facts[f"{prefix}class"] = _class_of(loader if dataset is None else dataset)
        if hasattr(dataset, "__len__"):
            facts[f"{prefix}samples"] = len(dataset)
        batches = getattr(loader, "batch_sampler", None)
        size = getattr(loader, "batch_size", None) or getattr(batches, "batch_size", None)
        if isinstance(size, int):
            facts[f"{prefix}batch_size"] = size
    return facts


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
