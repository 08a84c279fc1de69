"""What `itwinai.compat.lightning_checkpoints` takes for granted about private names."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn, TrainerState
from torch import nn

from itwinai.callbacks import ModelCheckpoint
from itwinai.checkpoints.state import checkpoint_of
from itwinai.compat import lightning_checkpoints
from tests.compat.examples import connected
from tests.support.cases import Regression, loader
from tests.support.cases import make_trainer as itwinai_trainer


def test_connector_is_called(tmp_path: Path) -> None:
    trainer, connector = connected()
    trainer.fit(Regression(), loader(8))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert connector.calls == [("choose", None), ("complete", True, False), ("complete", True, True)]

    path = tmp_path / "whole.ckpt"
    trainer, connector = connected()
    trainer.fit(Regression(), loader(8), ckpt_path=path)
    assert connector.calls == [("choose", path), ("locate", path), ("take", 26), ("adapt", 1)]

    trainer, connector = connected()
    trainer.validate(Regression(), loader(8), ckpt_path=path)
    assert connector.calls == [("locate", path)]

    trainer, connector = connected()
    with pytest.raises(RuntimeError, match="Error"):
        trainer.fit(Other(), loader(8), ckpt_path=path)
    assert ("mismatch", ["net.0.bias"], "Error") in connector.calls


class Other(Regression):
    """Does not fit to the checkpoints of its base."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 1))


def test_warning_of_mid_epoch_is_left_out() -> None:
    from lightning.pytorch.loops import training_epoch_loop

    text = Path(training_epoch_loop.__file__).read_text()
    assert "You're resuming from a checkpoint that ended before the epoch ended" in text


def test_record_of_checkpoints(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    trainer = itwinai_trainer("auto", 1, max_epochs=3, callbacks=[callback], enable_checkpointing=True)
    trainer.fit(Regression(), loader(8), loader(8))
    best, last = callback.best_model_path, callback.last_model_path
    kept = set(callback.best_k_models)
    assert best in kept and len(kept) == 2
    callback.forget(best)
    assert callback.best_model_path in kept - {best}
    assert callback.best_model_score == callback.best_k_models[callback.best_model_path]
    callback.forget(last)
    assert callback.last_model_path == ""


def test_interval_of_checkpoints() -> None:
    callback = ModelCheckpoint(every="30s")
    assert callback.train_time_interval is not None and callback.train_time_interval.total_seconds() == 30
    assert callback.every_n_train_steps == 0 and callback.last_time_checked == 0.0
    assert ModelCheckpoint(every="7steps").every_n_train_steps == 7


@pytest.mark.parametrize("callback_class", [LightningModelCheckpoint, ModelCheckpoint])
def test_does_nothing_per_batch(callback_class: Any) -> None:
    assert lightning_checkpoints.does_nothing_per_batch(callback_class())
    assert not lightning_checkpoints.does_nothing_per_batch(callback_class(every_n_train_steps=3))

    class Own(callback_class):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None: ...

    assert not lightning_checkpoints.does_nothing_per_batch(Own())
    patched = callback_class()
    patched.on_train_batch_end = print
    assert not lightning_checkpoints.does_nothing_per_batch(patched)


def test_choice_is_for_fits_only() -> None:
    trainer, connector = connected()
    for function in (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING):
        connector._select_ckpt_path(function, "path", model_provided=True, model_connected=False)
    assert connector.calls == []
    assert connector._select_ckpt_path(TrainerFn.FITTING, "path", model_provided=True, model_connected=True) == "path"
    assert connector.calls == [("choose", "path")]


def test_progress_of_an_earlier_moment() -> None:
    trainer, connector = connected()
    trainer.fit(Regression(), loader(8))
    progress = connector.read_progress()
    assert progress["epoch"] == 2 and set(progress["loops"]) >= {"fit_loop", "validate_loop"}
    connector.earlier = {"epoch": 7, "loops": {}}
    checkpoint = connector.dump_checkpoint(False)
    assert (checkpoint["epoch"], checkpoint["loops"]) == (7, {})


def test_saves_are_postponed(tmp_path: Path) -> None:
    callback = LightningModelCheckpoint(tmp_path, monitor="train_loss", save_top_k=1, save_last="link", mode="max")
    waiting: list[Any] = []
    coming: list[str] = []

    def postpone(path: str, action: Any) -> bool:
        coming.append(path)
        waiting.append(action)
        return True

    with lightning_checkpoints.postponing_saves([callback], postpone, coming.__contains__):
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, callbacks=[callback], enable_progress_bar=False
        )
        trainer.fit(Regression(), loader(8))
        assert not list(tmp_path.glob("*.ckpt")) and callback.best_model_path in coming
        assert callback.file_exists(callback.best_model_path, trainer)
    for action in waiting:
        action()
    assert Path(callback.best_model_path).exists() and (tmp_path / "last.ckpt").is_symlink()
    assert not {"_save_checkpoint", "_remove_checkpoint", "_link_checkpoint", "file_exists"} & set(vars(callback))


def test_class_with_hooks_of_its_own_finds_its_file(tmp_path: Path) -> None:
    class Uploads(LightningModelCheckpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            assert Path(self.best_model_path).exists()

    trainer = itwinai_trainer("auto", 1, max_epochs=1, callbacks=[Uploads(tmp_path)], enable_checkpointing=True)
    trainer.fit(Regression(), loader(8))


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, True),
        ({"monitor": "loss", "save_last": True}, True),
        ({"every_n_train_steps": 2}, False),
        ({"train_time_interval": timedelta(seconds=1)}, False),
        ({"every_n_epochs": 2}, True),
    ],
)
def test_checkpoint_callbacks_that_do_nothing_per_batch_are_known(options: dict[str, Any], idle: bool) -> None:
    callback = LightningModelCheckpoint(**options)
    assert lightning_checkpoints.does_nothing_per_batch(callback) is idle
    # What is left out would have asked neither the trainer nor the module for anything but how it is optimized.
    if idle:
        for automatic in (True, False):
            trainer = SimpleNamespace(
                global_step=4, fast_dev_run=False, state=TrainerState(fn=TrainerFn.FITTING), sanity_checking=False
            )
            before = callback.state_dict()
            callback.on_train_batch_end(trainer, SimpleNamespace(automatic_optimization=automatic), None, None, 3)
            assert callback.state_dict() == before


class WritesPerBatch(LightningModelCheckpoint):
    def on_train_batch_end(self, *args: Any) -> None:
        """Do something else."""


def test_checkpoint_callback_of_the_user_s_own_is_called_per_batch() -> None:
    assert not lightning_checkpoints.does_nothing_per_batch(WritesPerBatch())
    changed = LightningModelCheckpoint()
    changed.on_train_batch_end = lambda *args: None  # type: ignore[method-assign]
    assert not lightning_checkpoints.does_nothing_per_batch(changed)
    assert not lightning_checkpoints.does_nothing_per_batch(Callback())


class Configured(LightningModule):
    """Has its hyperparameters as one argument."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(options)
        self.layer = nn.Linear(options["width"], 1)


def test_module_is_made_of_a_checkpoint_s_content(tmp_path: Path) -> None:
    module = Configured({"width": 3})
    content = checkpoint_of(module)
    assert content["hparams_name"] == lightning_checkpoints.hyperparameters_name(module) == "options"
    assert lightning_checkpoints.hyperparameters_name(Regression()) is None
    torch.save(content, tmp_path / "a.ckpt")
    made = lightning_checkpoints.module_from(Configured, content, {})
    expected = Configured.load_from_checkpoint(tmp_path / "a.ckpt")
    assert made.hparams == expected.hparams == {"width": 3}
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in made.state_dict().items())
