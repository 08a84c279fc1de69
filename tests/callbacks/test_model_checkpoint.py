"""`ModelCheckpoint` saves as lightning's does, in the background, as often as it is told to."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.callbacks import model_checkpoint

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from itwinai.callbacks import model_checkpoint as itwinai_model_checkpoint
from itwinai.checkpoints import portable_file
from itwinai.checkpoints.async_writer import BackgroundWriter, Snapshot
from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO
from itwinai.errors import CheckpointError, ConfigurationError
from tests.support.cases import Regression, loader, make_trainer


def fit(callback: L.Callback, strategy: str = "auto", workers: int = 1, epochs: int = 3, **options: Any) -> Regression:
    L.seed_everything(11, verbose=False)
    module = Regression("adamw")
    trainer = make_trainer(
        strategy, workers, max_epochs=epochs, callbacks=[callback], enable_checkpointing=True, **options
    )
    trainer.fit(module, loader(8 // workers), loader(8 // workers))
    return module


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("every", "arguments"),
    [
        ("500steps", {"every_n_train_steps": 500}),
        ("1 step", {"every_n_train_steps": 1}),
        ("2epochs", {"every_n_epochs": 2}),
        ("10min", {"train_time_interval": timedelta(minutes=10)}),
        ("1.5h", {"train_time_interval": timedelta(hours=1.5)}),
        ("30 s", {"train_time_interval": timedelta(seconds=30)}),
    ],
)
def test_intervals(every: str, arguments: dict[str, Any]) -> None:
    # Equal keys of state mean equal intervals.
    assert ModelCheckpoint(every=every).state_key == LightningModelCheckpoint(**arguments).state_key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": "often"}, "'often' is not an interval; write '500steps'"),
        ({"every": "0steps"}, "is not an interval"),
        ({"every": "1.5epochs"}, "not a whole number of epochs"),
        ({"every": "5steps", "every_n_epochs": 1}, "both say how often to save"),
        ({"on_error": "ignore"}, "choose one of stop, continue"),
        ({"keep": 0}, "at least 1"),
        ({"keep": 2, "monitor": "x"}, "cannot be combined with monitor"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelCheckpoint(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"save_last": True},
        {"monitor": "val_loss", "save_top_k": 2, "filename": "{epoch}-{val_loss:.3f}"},
        {"every_n_train_steps": 4, "save_top_k": -1},
        {"every_n_epochs": 2, "save_top_k": -1, "save_weights_only": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("background", [True, False])
def test_saves_what_lightning_saves(arguments: dict[str, Any], background: bool, tmp_path: Path) -> None:
    ours = ModelCheckpoint(tmp_path / "ours", background=background, **arguments)
    fit(ours)
    theirs = LightningModelCheckpoint(tmp_path / "theirs", **arguments)
    fit(theirs)
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    for attribute in ("best_model_path", "last_model_path", "kth_best_model_path"):
        assert Path(getattr(ours, attribute)).name == Path(getattr(theirs, attribute)).name
    assert ours.best_model_score == theirs.best_model_score
    for name in names(tmp_path / "ours"):
        one, other = (portable_file.read(tmp_path / folder / name)["state_dict"] for folder in ("ours", "theirs"))
        assert all(torch.equal(one[key], other[key]) for key in other), name


def test_it_is_the_default(tmp_path: Path) -> None:
    trainer = ItwinaiTrainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path)
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    theirs = LightningModelCheckpoint()
    given = ItwinaiTrainer(accelerator="cpu", devices=1, logger=False, callbacks=theirs)
    assert given.checkpoint_callbacks == [theirs]
    assert not ItwinaiTrainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False
    ).checkpoint_callback


@pytest.mark.parametrize(("strategy", "workers", "save_last"), [("auto", 1, True), ("ddp", 2, False)])
def test_newest_are_kept(strategy: str, workers: int, save_last: bool, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{step}", every="5steps", keep=2, save_last=save_last)
    fit(callback, strategy, workers)
    assert names(tmp_path) == ["last.ckpt"] * save_last + ["step=30.ckpt", "step=35.ckpt"]
    if save_last:  # which is none of the two, in a resumed run neither
        again = ModelCheckpoint(tmp_path, filename="{step}", every="5steps", keep=2, save_last=True)
        fit(again, strategy, workers, epochs=4, resume="auto")
        assert names(tmp_path) == ["last.ckpt", "step=45.ckpt", "step=50.ckpt"]


def test_a_finished_run_is_resumed_from_its_end(tmp_path: Path) -> None:
    """What comes after the last interval is saved once, and not trained again."""
    callback = ModelCheckpoint(tmp_path, filename="{step}", every="10h")
    fit(callback, epochs=2)
    assert names(tmp_path) == ["step=26.ckpt"]
    longer = ModelCheckpoint(tmp_path, filename="{step}", every="10h", keep=5)
    resumed = fit(longer, epochs=3, resume="auto")
    assert len(resumed.steps_seen) == 13
    fit(ModelCheckpoint(tmp_path, filename="{step}", every="10h"), epochs=3, resume="auto")  # nothing is left to train
    assert names(tmp_path) == ["step=26.ckpt", "step=39.ckpt"]
    fit(ModelCheckpoint(tmp_path / "stock", train_time_interval=timedelta(hours=10)))
    assert not list((tmp_path / "stock").glob("*"))  # as lightning does


class Clocked(Regression):
    """Lets the callbacks see a clock by which a step takes 0.02 s, however long it takes."""

    def on_fit_start(self) -> None:
        clock = SimpleNamespace(monotonic=lambda: self.trainer.global_step * 0.02)
        for module in (itwinai_model_checkpoint, model_checkpoint):
            vars(module)["time"] = clock

    def on_fit_end(self) -> None:
        for module in (itwinai_model_checkpoint, model_checkpoint):
            vars(module)["time"] = time


@pytest.mark.parametrize(("strategy", "workers"), [("auto", 1), ("ddp", 2)])
def test_time_between_checkpoints(strategy: str, workers: int, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{step}", every="0.1s", keep=100)
    trainer = make_trainer(strategy, workers, max_epochs=1, callbacks=[callback], enable_checkpointing=True)
    trainer.fit(Clocked(), loader(8 // workers))
    assert names(tmp_path) == ["step=10.ckpt", "step=13.ckpt", "step=5.ckpt"]


def test_snapshot_is_a_copy() -> None:
    weight = torch.ones(3)
    content = {"a": weight, "tied": weight, "b": [weight[:2], (1, "x")], "c": {"d": torch.zeros(0)}}
    snapshot = Snapshot()
    first = snapshot.copy(content)
    weight.zero_()
    assert torch.equal(first["a"], torch.ones(3)) and first["tied"] is first["a"]
    assert torch.equal(first["b"][0], torch.ones(2)) and first["b"][1] == (1, "x")
    second = snapshot.copy(content)
    assert second["a"].data_ptr() == first["a"].data_ptr()  # its memory is used again
    assert torch.equal(second["a"], torch.zeros(3))


def test_writes_wait_for_each_other() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), []

    def write(content: dict[str, Any], path: str) -> None:
        gate.wait(10)
        done.append((path, content["x"].item()))

    value = torch.tensor(1)
    writer.write({"x": value}, "first", write)
    value.fill_(2)
    writer.remove("older", lambda path: done.append(path))
    assert done == []
    opener = threading.Timer(0.1, gate.set)
    opener.start()
    writer.write({"x": value}, "second", write)  # waits until the first is written
    assert done[:2] == [("first", 1), "older"]
    writer.close()
    assert done[2:] == [("second", 2)]


def test_nothing_is_removed_after_a_failed_write() -> None:
    writer, removed = BackgroundWriter(), []

    def fail(content: dict[str, Any], path: str) -> None:
        raise OSError("no space")

    writer.write({}, "new", fail)
    writer.remove("previous", removed.append)
    writer.wait()
    assert removed == []
    ((path, error),) = writer.pop_failures()
    assert path == "new" and str(error) == "no space" and writer.pop_failures() == []
    writer.write({}, "newer", lambda content, path: None)
    writer.remove("previous", removed.append)
    writer.close()
    assert removed == ["previous"]


class FailingIO(PortableCheckpointIO):
    """Cannot write checkpoints of some steps."""

    def _write(self, checkpoint: dict[str, Any], path: Any) -> None:
        if checkpoint["global_step"] in (26, 39):
            raise OSError(28, "No space left on device")
        super()._write(checkpoint, path)


@pytest.mark.parametrize(("strategy", "workers"), [("auto", 1), ("ddp", 2)])
def test_record_forgets_what_could_not_be_written(strategy: str, workers: int, tmp_path: Path) -> None:
    callback = ModelCheckpoint(
        tmp_path, filename="{step}", monitor="val_loss", mode="min", save_top_k=2, on_error="continue"
    )
    fit(callback, strategy, workers, epochs=4, plugins=[FailingIO()])
    assert names(tmp_path) == ["step=13.ckpt", "step=52.ckpt"]
    assert sorted(Path(path).name for path in callback.best_k_models) == ["step=13.ckpt", "step=52.ckpt"]
    assert Path(callback.best_model_path).exists()


def test_failure_ends_the_run_on_all_workers(tmp_path: Path, no_leftovers: None) -> None:
    with pytest.raises(CheckpointError, match="step=26.ckpt could not be written .*No space left"):
        fit(ModelCheckpoint(tmp_path, filename="{step}"), "ddp", 2, epochs=4, plugins=[FailingIO()])
    assert names(tmp_path) == ["step=13.ckpt"]


def test_warns_of_what_will_not_load(tmp_path: Path) -> None:
    class WithPath(Regression):
        def __init__(self, place: Path) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = make_trainer("auto", 1, max_epochs=1)
    trainer.fit(WithPath(tmp_path), loader(8))
    with pytest.warns(UserWarning, match=r"more than tensors and plain values: pathlib"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
