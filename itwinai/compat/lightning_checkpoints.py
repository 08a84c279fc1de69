"""How Lightning collects, saves and restores checkpoints."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.core.saving import _load_state
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from itwinai.compat.jsonargparse import unlisted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from lightning.pytorch import Callback, LightningModule, Trainer


if TYPE_CHECKING:  # which cannot follow a function that makes a class
    UnlistedModelCheckpoint = LightningModelCheckpoint
else:
    UnlistedModelCheckpoint = unlisted(LightningModelCheckpoint)


def does_nothing_per_batch(callback: Callback) -> bool:
    """Return whether a callback's ``on_train_batch_end`` is Lightning's and returns at once, in every step.

    That of a ModelCheckpoint does unless it saves every n steps or seconds. Our own classes have an attribute for it.
    """
    if "on_train_batch_end" in vars(callback):
        return False
    if isinstance(callback, ModelCheckpoint):
        return callback.is_idle_per_batch
    return (
        isinstance(callback, LightningModelCheckpoint)
        and type(callback).on_train_batch_end is LightningModelCheckpoint.on_train_batch_end
        and callback._every_n_train_steps < 1
        and callback._train_time_interval is None
    )


class CheckpointConnector(_CheckpointConnector):
    """Lightning's connector of checkpoints, which leaves to public methods what is beside Lightning's own content."""

    trainer: Trainer

    selected: Any = None  # what is about to be restored; `_ckpt_path` is set only when it is read
    earlier: dict[str, Any] | None = None  # the progress that goes into a checkpoint, if not the present one

    def read_progress(self) -> dict[str, Any]:
        """Return the progress of the run, as it is in checkpoints."""
        return {"epoch": self.trainer.current_epoch, "loops": self._get_loops_state_dict()}

    def complete(self, checkpoint: dict[str, Any], weights_only: bool) -> None:
        """Add to the content of a checkpoint; all workers come here."""

    def adapt(self, checkpoint: dict[str, Any]) -> None:
        """Make the optimizers' states of a checkpoint fit to this run's optimizers."""

    def take(self, checkpoint: dict[str, Any]) -> None:
        """Take what the loops will need of a checkpoint that a fit resumes from."""

    @override
    def dump_checkpoint(self, weights_only: bool | None = None) -> dict:
        checkpoint = super().dump_checkpoint(weights_only) | (self.earlier or {})
        self.complete(checkpoint, bool(weights_only))
        return checkpoint

    def choose(self, given: str | None) -> str | None:
        """Return the checkpoint that a fit resumes from, given a path, a special name or nothing."""
        return given

    def locate(self, path: str) -> str | None:
        """Return the path that a special name stands for, once the workers can speak to each other."""
        return path

    def _select_ckpt_path(self, state_fn: TrainerFn, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        if state_fn == TrainerFn.FITTING:
            ckpt_path = self.choose(ckpt_path)
        self.selected = super()._select_ckpt_path(state_fn, ckpt_path, *args, **kwargs)
        return self.selected

    @override
    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        super().resume_start(self.locate(checkpoint_path) if checkpoint_path else checkpoint_path, weights_only)

    def explain_mismatch(self, weights: Mapping[str, Any], error: RuntimeError) -> None:
        """Raise what explains why the weights of a checkpoint do not fit to the module, if that is what is wrong."""

    def compare_class(self, checkpoint: Mapping[str, Any]) -> None:
        """Warn where the weights of a class were loaded into another one, which they happen to fit."""

    @override
    def restore_model(self) -> None:
        try:
            super().restore_model()
        except RuntimeError as error:
            self.explain_mismatch(self._loaded_checkpoint.get("state_dict", {}), error)
            raise
        if self._loaded_checkpoint:
            self.compare_class(self._loaded_checkpoint)

    @override
    def restore_optimizers(self) -> None:
        if self._loaded_checkpoint:
            self.adapt(self._loaded_checkpoint)
        super().restore_optimizers()

    @override
    def restore_loops(self) -> None:
        super().restore_loops()
        if self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            self.take(self._loaded_checkpoint)


def replace_checkpoint_connector(trainer: Trainer, connector_class: type[CheckpointConnector]) -> None:
    """Replace the class that collects the content of the trainer's checkpoints."""
    trainer._checkpoint_connector = connector_class(trainer)


def module_from(
    module_class: type[LightningModule], checkpoint: dict[str, Any], init_args: dict[str, Any]
) -> LightningModule:
    """Make a module of a checkpoint's content, as ``load_from_checkpoint`` does of a file.

    Args:
        module_class: its class.
        checkpoint: hyperparameters and weights.
        init_args: arguments of the class beside the hyperparameters, or in their place.
    """
    checkpoint.setdefault(module_class.CHECKPOINT_HYPER_PARAMS_KEY, {}).update(init_args)
    module = _load_state(module_class, checkpoint, **init_args)
    assert isinstance(module, module_class)
    return module


def hyperparameters_name(module: LightningModule) -> str | None:
    """Return the name of the argument that is all of a module's hyperparameters, if they were saved as one."""
    return getattr(module, "_hparams_name", None)


def checkpoint_connector(trainer: Trainer) -> _CheckpointConnector:
    """Return what collects the content of the trainer's checkpoints."""
    return trainer._checkpoint_connector


@contextmanager
def without_warning_of_mid_epoch() -> Iterator[None]:
    """Leave out Lightning's warning that a run which resumes in mid-epoch starts the epoch again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        yield


class ModelCheckpoint(UnlistedModelCheckpoint):
    """Lightning's callback that saves checkpoints, with its private attributes and methods under public names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replaced: dict[str, dict[str, Tensor]] = {}
        self.saving_to: str | None = None

    @property
    def is_idle_per_batch(self) -> bool:
        """Whether ``on_train_batch_end`` does nothing in every step."""
        return False

    @property
    def every_n_train_steps(self) -> int:
        """Number of steps between two checkpoints, or 0."""
        return self._every_n_train_steps

    @property
    def train_time_interval(self) -> timedelta | None:
        """Time between two checkpoints, or None."""
        return self._train_time_interval

    @property
    def last_time_checked(self) -> float:
        """When the last interval began, by the monotonic clock."""
        return self._last_time_checked or 0.0

    def saving(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Return the context in which checkpoints are saved and removed."""
        return nullcontext()

    def after_save(self, trainer: Trainer, filepath: str) -> None:
        """Called with each checkpoint that was saved, or is being written."""

    def forget(self, path: str) -> None:
        """Remove a checkpoint that could not be written from the record of checkpoints."""
        self.best_k_models.pop(path, None)
        self.best_k_models |= self._replaced.pop(path, {})  # it was not removed, as nothing has taken its place
        best, worst = (min, max) if self.mode == "min" else (max, min)
        score = self.best_k_models.get
        if self.best_model_path == path:
            self.best_model_path = best(self.best_k_models, key=score, default="")  # type: ignore[arg-type]
            self.best_model_score = score(self.best_model_path)
        if self.kth_best_model_path == path:
            self.kth_best_model_path = worst(self.best_k_models, key=score, default="")  # type: ignore[arg-type]
        if self.last_model_path == path:
            self.last_model_path = ""
        if self._last_checkpoint_saved == path:
            self._last_checkpoint_saved = ""
            self._last_global_step_saved = 0

    def drop_failed(self, trainer: Trainer) -> None:
        """Bring the record of what there is up to date, before it is decided what is saved and removed."""

    def save_end(self, trainer: Trainer) -> None:
        """Save as at the end of an interval, unless the last step was saved."""
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self.drop_failed(trainer)
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        before = dict(self.best_k_models)
        super()._update_best_and_save(current, trainer, monitor_candidates)
        new = [path for path in self.best_k_models if path not in before]
        gone = {path: score for path, score in before.items() if path not in self.best_k_models}
        self._replaced = dict.fromkeys(new, gone)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.saving_to = filepath
        try:
            with self.saving(trainer):
                super()._save_checkpoint(trainer, filepath)
        finally:
            self.saving_to = None
        self.after_save(trainer, filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        with self.saving(trainer):
            super()._remove_checkpoint(trainer, filepath)


@contextmanager
def postponing_saves(
    callbacks: list[Callback], postpone: Callable[[str, Callable[[], None]], bool], is_pending: Callable[[str], bool]
) -> Iterator[None]:
    """Let Lightning's callbacks that save checkpoints, and classes derived from them, save later.

    What they decide, and what of it they remember, is not postponed.

    Args:
        callbacks: all callbacks of a trainer.
        postpone: is given ``save``, ``remove`` or ``link`` with what does it; returns False if that has to be done now.
        is_pending: tells whether a path will be there later.
    """
    changed = [callback for callback in callbacks if isinstance(callback, LightningModelCheckpoint)]
    names = ("_save_checkpoint", "_remove_checkpoint", "_link_checkpoint", "file_exists")
    before = [{name: vars(callback)[name] for name in names if name in vars(callback)} for callback in changed]
    for callback in changed:
        vars(callback).update(_later_methods(callback, postpone, is_pending))
    try:
        yield
    finally:
        for callback, own in zip(changed, before, strict=True):
            for name in names:
                vars(callback).pop(name, None)
            vars(callback).update(own)


def _later_methods(
    callback: LightningModelCheckpoint,
    postpone: Callable[[str, Callable[[], None]], bool],
    is_pending: Callable[[str], bool],
) -> dict[str, Callable[..., Any]]:
    save_now, remove_now = callback._save_checkpoint, callback._remove_checkpoint
    link_now, exists_now = callback._link_checkpoint, callback.file_exists
    # Code of a class of the user's may use the file as soon as Lightning's method has returned.
    waits = (
        type(callback).__module__.startswith("lightning.")
        or isinstance(callback, ModelCheckpoint)
        or not any(
            getattr(type(callback), hook) is not getattr(LightningModelCheckpoint, hook)
            for hook in ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
        )
    )

    def save(trainer: Trainer, filepath: str) -> None:
        module = trainer.lightning_module
        if not module.automatic_optimization and hasattr(module, "saved_models"):
            save_now(trainer, filepath)  # Lightning has put other weights into the module by now
            return
        later = save_now if waits else _save_again
        if postpone(filepath, functools.partial(later, trainer, filepath)) and waits:
            callback._last_global_step_saved = trainer.global_step
            callback._last_checkpoint_saved = filepath
        else:
            save_now(trainer, filepath)

    def _save_again(trainer: Trainer, filepath: str) -> None:
        if exists_now(filepath, trainer):
            trainer.save_checkpoint(filepath, callback.save_weights_only)

    def remove(trainer: Trainer, filepath: str) -> None:
        if not postpone("", functools.partial(remove_now, trainer, filepath)):
            remove_now(trainer, filepath)

    def link(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if not postpone(linkpath, functools.partial(link_now, trainer, filepath, linkpath)):
            link_now(trainer, filepath, linkpath)

    def exists(filepath: Any, trainer: Trainer) -> bool:
        return is_pending(str(filepath)) or exists_now(filepath, trainer)

    return {"_save_checkpoint": save, "_remove_checkpoint": remove, "_link_checkpoint": link, "file_exists": exists}
