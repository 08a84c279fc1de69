"""What a new user hands to the trainer wrongly: one error that says what is wrong, why, and what to do."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, Dataset

from itwinai import ItwinaiTrainer, Predictor
from itwinai.callbacks import ModelCheckpoint
from itwinai.errors import CheckpointError, ConfigurationError, ItwinaiError
from tests.support.cases import Regression, loader, make_trainer


class Windows(Dataset[Any]):
    """A dataset whose samples have unequal lengths."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.ones(2 + index % 2, 3), torch.ones(1)


class Data(L.LightningDataModule):
    def __init__(self, loaders: Any = None) -> None:
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self) -> Any:
        return self.loaders


class ThirdArgument(Regression):
    def validation_step(self, batch: Any, batch_idx: int, station: str) -> None:  # type: ignore[override]
        pass


class NoHyperparameters(Regression):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class NothingReturned(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)


def trainer() -> ItwinaiTrainer:
    return make_trainer("auto", 1, max_epochs=2)


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda: trainer().fit(Regression(), np.ones(3)), r"got data \(ndarray\) where a DataLoader.*TensorDataset"),
        (lambda: trainer().fit(Regression(), loader(8), np.ones(3)), r"got data \(ndarray\)"),
        (lambda: trainer().fit(Regression(), Data()), r"Data\.train_dataloader returned None\. Return a DataLoader"),
        (lambda: trainer().fit(Data(), Regression()), r"Data is data\. Write trainer\.fit\(module, datamodule\)"),
        (
            lambda: trainer().fit(Regression(), train_dataloader=loader(8)),
            r"no argument 'train_dataloader'\. Did you mean 'train_dataloaders'\?",
        ),
        (lambda: ItwinaiTrainer(callbacks=[ModelCheckpoint]), r"callbacks\[0\] is the class ModelCheckpoint\. Pass an"),
        (
            lambda: trainer().fit(ThirdArgument(), loader(8), loader(8)),
            r"ThirdArgument\.validation_step\(batch, batch_idx, station\) is called with .*nothing gives it 'station'",
        ),
        (
            lambda: trainer().validate(Regression()),
            r"got none, and Regression has no val_dataloader\. Pass a loader, tra",
        ),
        (
            lambda: trainer().predict(Regression(), datamodule=Data(loader(8))),
            r"Data has no predict_dataloader \(it has train_dataloader\)\. Define it there, or pass a loader in the",
        ),
    ],
)
def test_the_message_says_what_to_do(run: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        run()
    assert raised.value.__cause__ is None and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("run", "note"),
    [
        (
            lambda: trainer().fit(Regression(), DataLoader(Windows(), 4)),
            "itwinai: samples of Windows have different shapes ([2, 3], [3, 3]) and cannot be stacked",
        ),
        (
            lambda: trainer().fit(NoHyperparameters(), loader(8)),
            "itwinai: self.hparams has no 'lr'; it is empty: self.s",
        ),
    ],
)
def test_a_line_below_the_exception_says_what_to_do(run: Callable[[], Any], note: str) -> None:
    with pytest.raises((RuntimeError, AttributeError)) as raised:
        run()
    assert vars(raised.value)["__notes__"][-1].startswith(note)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda: trainer().fit(Regression(), Windows()), r"got a Dataset \(Windows\): .*DataLoader\(dataset"),
        (lambda: trainer().fit(Regression(), (torch.ones(3), torch.ones(3))), r"got a Tensor: .*TensorDataset"),
        (lambda: trainer().predict(Regression(), [Windows()]), r"got a Dataset \(Windows\)"),
        (lambda: trainer().fit(Regression(), Data(Windows())), r"Data\.train_dataloader returned a Dataset \(Windows"),
    ],
)
def test_items_that_are_taken_as_batches_are_warned_of(
    run: Callable[[], Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itwinai.warn._shown", {})
    with pytest.warns(UserWarning, match=told), contextlib.suppress(Exception):  # what comes of it is the module's
        run()


class Batches(Dataset[Any]):
    """A dataset whose items are whole batches."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError
        return next(iter(loader(8)))


def test_datasets_of_batches_and_streams_are_loaders() -> None:
    trainer().fit(Regression(), Batches())

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader(8))

    trainer().fit(Regression(), Stream())
    trainer().fit(Regression(), [loader(8), loader(8)][0])


def test_a_training_step_that_never_returns_a_loss() -> None:
    with pytest.raises(ConfigurationError, match="returned None in every batch of the epoch.*Add `return loss`"):
        trainer().fit(NothingReturned(), loader(8))


class SometimesSkipped(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx == 2 else None


class OtherClass(Regression):
    pass


def said(run: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> str:
    """Return what a run has said in the log."""
    with caplog.at_level("INFO"):
        run()
    return caplog.text


@pytest.mark.filterwarnings("ignore:`training_step` returned")
def test_some_steps_may_be_skipped() -> None:
    trainer().fit(SometimesSkipped(), loader(8))


def test_early_stopping_says_why(caplog: pytest.LogCaptureFixture) -> None:
    stopping = EarlyStopping("val_error", mode="max", patience=1)
    run = make_trainer("auto", 1, max_epochs=9, callbacks=[stopping])
    text = said(lambda: run.fit(Regression(), loader(8), loader(8)), caplog)
    assert f"itwinai: EarlyStopping(mode='max') stopped the run after epoch {run.current_epoch}: Monitored m" in text
    assert "did not improve in the last 1 records" in text and "Signaling" not in text


def test_a_second_run_says_which_checkpoint_is_the_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for second in (False, True):
        callback = ModelCheckpoint(str(tmp_path), filename="best", save_last=True)
        run = make_trainer("auto", 1, max_epochs=1, callbacks=[callback], enable_checkpointing=True)
        caplog.clear()
        text = said(lambda run=run: run.fit(Regression(), loader(8)), caplog)  # type: ignore[misc]
        assert ("best-v1.ckpt (best.ckpt in its folder is of an earlier run" in text) is second
        assert ("last-v1.ckpt (last.ckpt in its folder is of an earlier run" in text) is second
    os.utime(tmp_path / "last-v1.ckpt", (2e9, 2e9))  # the clock of the file system may be coarse
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is not the newest of its name: .*last-v1\.ckpt was written later"
    ):
        Predictor.load(tmp_path / "last.ckpt").close()
    with pytest.warns(UserWarning, match=r"is of tests\.test_mistakes\.Other|is of tests\.support\.cases\.Regression"):
        make_trainer("auto", 1, max_epochs=2).fit(OtherClass(), loader(8), ckpt_path=tmp_path / "last-v1.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder, and not a checkpoint\. Name one in it \(best-v1\.ckpt, "):
        make_trainer("auto", 1, max_epochs=2).fit(Regression(), loader(8), ckpt_path=tmp_path)


class NotANumber(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = x.clone()
        if batch_idx == 2:
            x[0, 0] = float("nan")
            batch[0].copy_(x)
        return super().training_step((x, y), batch_idx)


def test_auto_does_not_go_on_from_a_run_that_has_diverged(tmp_path: Path) -> None:
    def fit(module: Regression, epochs: int) -> ItwinaiTrainer:
        saving = ModelCheckpoint(tmp_path, save_top_k=-1)
        run = make_trainer("auto", 1, max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
        run.fit(module, loader(8), ckpt_path="auto")
        return run

    fit(Regression(), 1)
    fit(NotANumber(), 3)
    assert len(list(tmp_path.glob("*.ckpt"))) == 3
    module = Regression()
    with pytest.warns(UserWarning, match=r"NaN or infinite: .*epoch=2\S+ \S+epoch=1\S+ .*is used instead: \S+epoch=0"):
        fit(module, 2)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.filterwarnings("always:Error detected")
def test_an_anomaly_shows_the_users_line_and_the_batch(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="returned nan values") as raised:
        make_trainer("auto", 1, max_epochs=1, detect_anomaly=True).fit(NotANumber(), loader(8))
    (note,) = raised.value.__notes__
    assert note.startswith("itwinai: batch 2 has 1 NaN in batch[0], shape (8, 8): look at the data first")
    shown = capfd.readouterr().err.partition("itwinai: Error detected")[2]  # handlers of the log may complain before
    assert "return super().training_step((x, y), batch_idx)" in shown
    assert len(shown.splitlines()) < 12 and "lightning/pytorch" not in shown


class Refused(L.LightningDataModule):
    def __init__(self, samples: int, **options: Any) -> None:
        super().__init__()
        self.samples, self.options = samples, options
        self.batch_size = options.get("batch_size")

    def train_dataloader(self) -> Any:
        dataset = torch.utils.data.TensorDataset(torch.zeros(self.samples, 8), torch.zeros(self.samples, 1))
        return torch.utils.data.DataLoader(dataset, shuffle=True, **self.options)


@pytest.mark.parametrize(
    ("samples", "options", "advice"),
    [
        (8, {"batch_size": 0}, "a batch has at least 1 sample; batch_size of Refused is 0: in a config, that is data."),
        (0, {"batch_size": 8}, "the dataset is empty: look at where it is read, split and filtered"),
        (8, {"num_workers": -1}, "0 loads the data in the process that trains"),
        (8, {"prefetch_factor": 2}, "set num_workers to 1 or more, or leave prefetch_factor out"),
        (8, {"persistent_workers": True}, "set num_workers to 1 or more, or leave persistent_workers out"),
    ],
)
def test_what_a_loader_refuses(samples: int, options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError) as raised:
        make_trainer("auto", 1, max_epochs=1).fit(Regression(), datamodule=Refused(samples, **options))
    assert vars(raised.value)["__notes__"][0].startswith(f"itwinai: {advice}")


def test_what_is_given_in_the_place_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    (tmp_path / "broken.ckpt").touch()
    (tmp_path / "model.py").touch()
    for path, told in {
        "best.ckpt": r"There is no checkpoint best\.ckpt .*Did you mean 'checkpoints/best\.ckpt'\?",
        "checkpoint/best.ckpt": r"Did you mean 'checkpoints/best\.ckpt'\?",
        "model.py": r"model\.py is not a checkpoint, .* There is broken\.ckpt, checkpoints/best\.ckpt",
        "checkpoints": r"checkpoints is a folder, and not a checkpoint\. Name one in it \(best\.ckpt\)",
    }.items():
        with pytest.raises(CheckpointError, match=told):
            Predictor.load(path)


class Forward(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(2, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).reshape(len(batch[0]), -1) @ torch.ones(30, 1)


def test_errors_of_a_predictor_are_short(tmp_path: Path) -> None:
    with Predictor(Forward()) as predictor:
        with pytest.raises(RuntimeError) as raised:
            predictor((np.zeros((30, 2)),))
        assert vars(raised.value)["__notes__"][-1].partition(" [")[0].endswith("a single one pass (x[None],).")
        for name, told in {
            "river.onnx": r"Forward\.forward fails with the example, of shape \(2, 30, 3\): .*Expected 2, got 3",
            "river.tflite": "Unknown file extension",
        }.items():
            with pytest.raises(ItwinaiError, match=told) as raised:
                predictor.export(tmp_path / name, example=np.zeros((2, 30, 3)))
            assert "\n" not in str(raised.value)
            assert not [one for one in traceback.extract_tb(raised.value.__traceback__) if one.filename != __file__]


def test_lightnings_name_of_the_trainer() -> None:
    with pytest.raises(ImportError, match="Did you mean 'ItwinaiTrainer'"):
        from itwinai import Trainer  # noqa: F401
