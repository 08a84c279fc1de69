"""Where Lightning saves and loads checkpoints: through our files, with our part of the content."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from itwinai.checkpoints import portable_file, sharded
from itwinai.checkpoints import state as checkpoint_state
from itwinai.checkpoints.async_writer import BackgroundWriter
from itwinai.checkpoints.discovery import AUTO, UNNAMED, newest_valid
from itwinai.checkpoints.given_path import check_path
from itwinai.checkpoints.naming import FOLDER, MODULE_CLASS, class_name_of
from itwinai.collectives import gather_of
from itwinai.compat import lightning_checkpoints, lightning_loops
from itwinai.errors import CheckpointError, ConfigurationError, MissingCheckpointError
from itwinai.interfaces import Gathering
from itwinai.launchers import slurm_job
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class PortableCheckpointIO(CheckpointIO):
    """Write and read checkpoint files with a manifest, whole or not at all; see `itwinai.checkpoints.portable_file`."""

    def __init__(self) -> None:
        self._warned = False
        self._writer = BackgroundWriter()
        self._keeps_failures = False
        self._in_background = False
        self._pending: list[str] = []

    @contextmanager
    def collecting_failures(self, background: bool) -> Iterator[None]:
        """Keep errors of checkpoints written inside the context for `pop_failures`, which all workers can read.

        Args:
            background: write in the background.
        """
        before = self._keeps_failures, self._in_background
        self._keeps_failures, self._in_background = True, background
        try:
            yield
        finally:
            self._keeps_failures, self._in_background = before

    def wait(self) -> None:
        """Wait until everything is written."""
        self._writer.wait()
        self._pending = []

    def is_pending(self, path: str) -> bool:
        """Return whether a file is being written, or about to be."""
        return path in self._pending

    def pop_failures(self) -> list[tuple[str, BaseException]]:
        """Return the paths that could not be written since the last call, each with what was raised."""
        return self._writer.pop_failures()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: its content.
            path: of the file, or a URL.
            storage_options: not supported; None.

        Raises:
            OSError: it could not be written; an older file of that name is still there.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported; put them into the URL or into fsspec's configuration.")
        self.save_with(self._write, checkpoint, str(path))

    def save_with(self, write: Callable[[dict[str, Any], str], None], checkpoint: dict[str, Any], path: str) -> None:
        """Write a checkpoint in another way, in the background if that is wanted.

        Args:
            write: is given the content, or in the background a snapshot of it, and the path.
            checkpoint: its content, with the tensors that this worker has to write.
            path: of the file or folder.
        """
        if not self._keeps_failures:
            self.wait()
            write(checkpoint, path)
            return
        if self._in_background:
            self._writer.write(checkpoint, path, write)
            self._pending = [path]
        else:
            self.wait()
            self._writer.write_now(checkpoint, path, write)

    def _write(self, checkpoint: dict[str, Any], path: Any) -> None:
        portable_file.write(checkpoint, path, checkpoint_state.describe(checkpoint), written_at=time.time())
        self.warn_of_types(path)

    def warn_of_types(self, path: Any) -> None:
        """Say once, when a checkpoint is written, that it will not load as it is."""
        if self._warned:
            return
        if types := portable_file.unsafe_types(path):
            self._warned = True
            warn_user(
                f"Checkpoints of this run hold more than tensors and plain values: {', '.join(types)}. They will load "
                "with weights_only=False only. Such values mostly come from save_hyperparameters(): leave them out "
                "with save_hyperparameters(ignore=[...]), or save them as text and numbers."
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and load a checkpoint.

        Args:
            path: of the file, or a URL.
            map_location: not used: the content comes to the memory of the CPU.
            weights_only: False also loads what might execute code; the default is True.

        Raises:
            CheckpointError: see `itwinai.checkpoints.portable_file.read`.
            FileNotFoundError: there is no such file.
        """
        self.wait()
        return sharded.read_any(path, weights_only is not False)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file or folder, in its turn after what is being written."""
        if self._keeps_failures:
            self._writer.remove(str(path), _remove)
        else:
            self.wait()
            _remove(str(path))

    def teardown(self) -> None:
        """Wait until everything is written; warn of failures that have not been raised."""
        self._writer.close()
        self._pending = []
        for path, error in self.pop_failures():
            warn_user(f"The checkpoint {path} could not be written: {type(error).__name__}: {error}")


def _remove(path: str) -> None:
    filesystem, place = fsspec.core.url_to_fs(path)
    if filesystem.exists(place):
        filesystem.rm(place, recursive=True)


@dataclass(frozen=True)
class ResumeState:
    """Where a fit resumes.

    Attributes:
        section: our part of the checkpoint.
        in_epoch: whether it was written within an epoch, whose loaders were being iterated.
        batches: number of batches of the epoch that had been begun.
    """

    section: checkpoint_state.ItwinaiState
    in_epoch: bool
    batches: int

    def continues_epoch(self, batches: int) -> bool:
        """Return whether the epoch that is about to run is that of the checkpoint, after some of its batches.

        Lightning begins the next epoch if the checkpoint was written at the end of the last batch.
        """
        if self.section.begun_with is not None:
            return self.in_epoch
        return self.in_epoch and (batches > 0 or self.batches == 0)


class PortableConnector(lightning_checkpoints.CheckpointConnector):
    """Lightning's connector of checkpoints, with our part of the content.

    Attributes:
        resumed: our part of the checkpoint that this fit resumes from, until the first epoch begins.
        resume: what a fit resumes from if it is not told: a path, ``"auto"``, or None.
        since: of a run whose workers are started again, when they were started first; only checkpoints that were
            written since count.
        first: what the workers that were started first resumed from.
        parts_of_workers: on the caller, what only the workers of the last fit had; empty if it did not get that, None
            before any fit.
    """

    resumed: ResumeState | None = None
    resume: str | None = None
    since = 0.0
    first: str | None = None
    parts_of_workers: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers have their own, and these may be large.
        return {**vars(self), "parts_of_workers": None}

    @override
    def choose(self, given: str | None) -> str | None:
        self.first = given or self.resume
        return AUTO if self.since else self.first

    @override
    def locate(self, path: str | os.PathLike[str]) -> str | None:
        path = os.fspath(path)  # `ckpt_path` accepts a Path as well
        if path not in (AUTO, UNNAMED):
            advice = "Give the path of one, or 'auto' for the newest valid one of this run's folders."
            check_path(path, advice, folders=True)
            return path
        if self.selected != path:
            located: str | None = self.selected  # the workers have agreed on it already
            return located
        self.selected = located = self.trainer.strategy.broadcast(self._newest())
        if path == UNNAMED:
            self._say_what_was_found(located)
            return located
        if located is None and self.trainer.state.fn != TrainerFn.FITTING:
            folders = ", ".join(folders_of(self.trainer)) or "this run has no folder for checkpoints"
            raise MissingCheckpointError(
                f"ckpt_path='auto' finds no valid checkpoint ({folders}). Give the path of one; or leave ckpt_path out "
                "to use the weights that the module has."
            )
        if located is None:
            rank_zero_info("itwinai: there is no valid checkpoint yet; training starts from scratch")
        return located

    def _say_what_was_found(self, path: str | None) -> None:
        if path is not None:  # which Lightning says when it has loaded it
            rank_zero_info("itwinai: no checkpoint is named, so the newest of these runs is used; --ckpt names others")
        elif self.trainer.state.fn == TrainerFn.PREDICTING:
            raise MissingCheckpointError(
                "no checkpoint is given, and there is none of this config's runs, so these would be the predictions of "
                "an untrained model. Train it first, or add --ckpt PATH; --ckpt none if the model loads its weights "
                "itself."
            )
        else:
            rank_zero_info("itwinai: there is no checkpoint yet: this evaluates the initial weights of the model")

    @override
    def restore(self, *args: Any, **kwargs: Any) -> None:
        super().restore(*args, **kwargs)
        # Lightning's finders of the learning rate and the batch size restore by this, within a fit that does not resume
        # from their checkpoint.
        self.resumed = None

    @override
    def restore_loops(self) -> None:
        trainer = self.trainer
        try:
            super().restore_loops()
            epochs, limit = lightning_loops.processed_epochs(trainer.fit_loop), trainer.max_epochs
            if trainer.state.fn == "fit" and limit not in (None, -1) and epochs >= limit:
                warn_user(
                    f"Nothing is left to train: the checkpoint has been trained for {epochs} epochs, and max_epochs="
                    f"{limit} counts from the start of its first run. Raise max_epochs to continue."
                )
        except MisconfigurationException as error:
            if self.resume != AUTO or self.selected is None:
                raise
            raise ConfigurationError(
                f"resume='auto' chose {self.selected}, the newest checkpoint of this run, and it is from epoch "
                f"{self.trainer.current_epoch} (the first is 0), beyond max_epochs={self.trainer.max_epochs}. Train "
                "longer with a higher max_epochs; or start from scratch, without resume or in another folder."
            ) from error

    def _newest(self) -> str | None:
        if not self.trainer.is_global_zero:
            return None
        folders = folders_of(self.trainer)
        module = self.trainer.lightning_module
        names = [] if module is None else [name for name, _ in module.named_parameters()]
        # A job that SLURM runs again continues its own runs, beside which there may be those of other jobs.
        if slurm_job.earlier_tries() and (own := newest_valid(_own_folders(self.trainer), self.since, names)):
            return own
        newest = newest_valid(folders, self.since, names)
        if newest is None and self.since:  # the workers died before the first save: begin where they did
            return newest_valid(folders, 0.0, names) if self.first == AUTO else self.first
        return newest

    @override
    def complete(self, checkpoint: dict[str, Any], weights_only: bool) -> None:
        checkpoint.setdefault(MODULE_CLASS, class_name_of(self.trainer.lightning_module))
        if weights_only or not self._knows_all_workers():
            return
        if lightning_loops.is_accumulating(self.trainer):
            warn_user(
                "This checkpoint is saved in the middle of gradient accumulation (accumulate_grad_batches="
                f"{self.trainer.accumulate_grad_batches}). Accumulated gradients are not saved: after a resume, the "
                "first optimizer step uses the remaining batches only."
            )
        strategy = self.trainer.strategy
        if self.trainer.strategy.launcher is not None and self.parts_of_workers is not None:
            self._complete_on_caller(checkpoint, self.parts_of_workers)
            return
        names = strategy.parameter_names() if isinstance(strategy, Gathering) else None
        checkpoint[checkpoint_state.KEY] = checkpoint_state.section(self.trainer, gather_of(strategy), names).plain()

    def _complete_on_caller(self, checkpoint: dict[str, Any], parts: dict[str, Any]) -> None:
        if not parts:
            raise CheckpointError(
                "This process has no optimizer states to save: the workers did not send them back, because the fit "
                "failed or they are too large. Use a checkpoint that the run itself saved (ModelCheckpoint), or save "
                "only the weights with weights_only=True."
            )
        checkpoint.update(parts)

    def _knows_all_workers(self) -> bool:
        """Whether the strategy is not one of Lightning's own that shards the state over several workers."""
        return isinstance(self.trainer.strategy, Gathering) or self.trainer.world_size == 1

    @override
    def adapt(self, checkpoint: dict[str, Any]) -> None:
        section = checkpoint_state.ItwinaiState.of(checkpoint)
        if section is None or not self._knows_all_workers():
            return
        strategy = self.trainer.strategy
        names = strategy.parameter_names() if isinstance(strategy, Gathering) else None
        if names is None:
            names = checkpoint_state.names_of_parameters(self.trainer.lightning_module, self.trainer.optimizers)
        checkpoint["optimizer_states"] = [
            checkpoint_state.match_optimizer_state(state, saved, wanted)
            for state, saved, wanted in zip(
                checkpoint["optimizer_states"], section.parameter_names, names, strict=False
            )
        ]

    @override
    def take(self, checkpoint: dict[str, Any]) -> None:
        # Strategies that shard in their own way have the optimizer elsewhere.
        if "optimizer_states" not in checkpoint and self.trainer.strategy.lightning_restore_optimizer:
            raise CheckpointError(
                f"The checkpoint {self.trainer.ckpt_path} holds the weights only (it was saved with weights_only, or "
                "save_weights_only of ModelCheckpoint), so that no fit can resume from it. To begin a new fit with "
                "these weights, load them with load_from_checkpoint."
            )
        section = checkpoint_state.ItwinaiState.of(checkpoint)
        loop = self.trainer.fit_loop
        if section is not None and section.progress is not None and isinstance(loop, lightning_loops.FitLoop):
            loop.load_progress(section.progress)
        self.resumed = (
            None
            if section is None
            else ResumeState(
                section,
                in_epoch=lightning_loops.is_epoch_begun(self.trainer),
                batches=self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            )
        )

    @override
    def explain_mismatch(self, weights: Mapping[str, Any], error: RuntimeError) -> None:
        module = self.trainer.lightning_module
        own = module.state_dict()
        shapes = [name for name in own.keys() & weights.keys() if _shape(own[name]) != _shape(weights[name])]
        lists = {
            "missing": own.keys() - weights.keys(),
            "not in the module": weights.keys() - own.keys(),
            "of another shape": [f"{name} {_shape(weights[name])} for {_shape(own[name])}" for name in shapes],
        }
        if any(lists.values()):
            found = "; ".join(f"{what}: {_shortened(sorted(names))}" for what, names in lists.items() if names)
            raise CheckpointError(
                f"The checkpoint {self.trainer.ckpt_path} does not match {type(module).__name__}: {found}. Build the "
                "module as it was when the checkpoint was written (load_from_checkpoint does, by its hyperparameters)"
                + ("." if shapes else ", or set strict_loading = False in it to load what fits.")
            ) from None

    @override
    def compare_class(self, checkpoint: Mapping[str, Any]) -> None:
        name, module = checkpoint.get(MODULE_CLASS), self.trainer.lightning_module
        if isinstance(name, str) and not name.endswith(f".{type(module).__qualname__}"):
            warn_user(
                f"The checkpoint {self.trainer.ckpt_path} is of {name}, and is loaded into {class_name_of(module)}, "
                "whose weights have the same names and shapes. If that is not what you want, name another checkpoint."
            )

    def pop_resume_state(self) -> ResumeState | None:
        """Return our part of the checkpoint that this fit resumes from, once."""
        resumed, self.resumed = self.resumed, None
        return resumed


def selected_path(trainer: Trainer) -> str | None:
    """Return the checkpoint that is about to be restored; all workers have to ask together, after they have met."""
    connector = lightning_checkpoints.checkpoint_connector(trainer)
    if not isinstance(connector, PortableConnector) or connector.selected is None:
        return None if trainer.ckpt_path is None else str(trainer.ckpt_path)
    return connector.locate(str(connector.selected))


def folders_of(trainer: Trainer) -> list[str]:
    """Return the folders in which a trainer's checkpoints are, also those of its earlier runs."""
    folders: list[str] = []
    for folder in _own_folders(trainer):
        folders.append(folder)
        filesystem, place = fsspec.core.url_to_fs(folder)
        runs = place.rpartition("/")[0].rpartition("/")[0]
        if _is_of_version(place, trainer) and filesystem.isdir(runs):
            earlier = [f"{other}/{FOLDER}" for other in filesystem.ls(runs, detail=False)]
            local = isinstance(filesystem, LocalFileSystem)
            folders += [other if local else filesystem.unstrip_protocol(other) for other in earlier]
    return list(dict.fromkeys(folders))


def _own_folders(trainer: Trainer) -> list[str]:
    """Return the folders of this run's checkpoint callbacks."""
    folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder) for folder in folders if folder]


def _is_of_version(place: str, trainer: Trainer) -> bool:
    """Return whether checkpoints are where Lightning puts those of a logger's version: ``NAME/VERSION/checkpoints``.

    The logger counts the versions of one run, so that the folders beside it hold the earlier ones. Beside a folder that
    you have named are those of other runs.
    """
    if not trainer.loggers:
        return False
    logger = trainer.loggers[0]
    root = str(fsspec.core.url_to_fs(str(logger.save_dir or trainer.default_root_dir))[1]).rstrip("/")
    below = place.removeprefix(f"{root}/").split("/") if place.startswith(f"{root}/") else []
    if len(below) < 2 or below[-1] != FOLDER:
        return False
    if len(below) == 2 and not below[0].startswith("version_"):  # asking some loggers for their version begins a run
        return False
    version = logger.version
    return below[-2] == (version if isinstance(version, str) else f"version_{version}")


def pop_resume_state(trainer: Trainer) -> ResumeState | None:
    """Return our part of the checkpoint that a fit resumes from, the first time it is asked for; or None."""
    connector = lightning_checkpoints.checkpoint_connector(trainer)
    return connector.pop_resume_state() if isinstance(connector, PortableConnector) else None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "ds_shape", getattr(value, "shape", ())))


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
