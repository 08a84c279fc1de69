"""The surrogate learns, its checkpoint knows its statistics, and two workers train what one trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.model import DroughtLSTM

from itwinai import ItwinaiTrainer

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def train(options: dict[str, Any], trainer: type = ItwinaiTrainer, **arguments: Any) -> tuple[DroughtLSTM, L.Trainer]:
    L.seed_everything(1)
    module = DroughtLSTM(hidden=8, cells=96, lr=0.02)
    fitted = trainer(**QUIET | arguments)
    fitted.fit(module, datamodule=DroughtDataModule(**options))
    return module, fitted


@pytest.fixture(scope="module")
def one_thread() -> Any:
    """Compute with one thread: several wait for each other in each of an LSTM's many small steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_workers_train_what_one_trains(options: dict[str, Any], one_thread: None) -> None:
    steps = {"max_epochs": 2, "limit_val_batches": 0}
    alone, _ = train(options, **steps)
    together, fitted = train(options, strategy="ddp", devices=2, split_batches=True, **steps)
    assert fitted.global_step > 10
    for (name, one), other in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)


def test_it_learns_and_its_checkpoint_predicts_without_the_training_part(
    options: dict[str, Any], one_thread: None, tmp_path: Path
) -> None:
    module, fitted = train(options, L.Trainer, max_epochs=8)  # stock lightning runs it, too
    assert fitted.callback_metrics["val_nse_vwc"] > 0.6
    assert fitted.callback_metrics["val_nse_q"] > 0.6
    fitted.save_checkpoint(tmp_path / "surrogate.ckpt")
    loaded = DroughtLSTM.load_from_checkpoint(tmp_path / "surrogate.ckpt")
    data = fitted.datamodule
    np.testing.assert_allclose(loaded.forcing_mean, data.statistics.forcings[0])
    np.testing.assert_allclose(loaded.target_std, data.statistics.targets[1])
    # Other training days have other statistics: fit takes them, unless the module has its own.
    other = options | {
        "periods": {"train": ["2001-02", "2001-04"], "val": ["2001-06", "2001-09"], "test": ["2002", "2002"]}
    }
    ItwinaiTrainer(**QUIET | {"max_epochs": 1, "limit_train_batches": 1}).fit(
        loaded, datamodule=DroughtDataModule(**other)
    )
    np.testing.assert_array_equal(loaded.forcing_mean, module.forcing_mean)

    data = DroughtDataModule(**options)
    trainer = ItwinaiTrainer(**QUIET)
    batches = trainer.predict(module, datamodule=data)
    dataset = trainer.predict_dataloaders.dataset
    vwc = torch.cat([batch["vwc"] for batch in batches])
    assert vwc.shape == (len(dataset), 30)
    sample = dataset[11]
    alone = module(sample["forcings"][None], sample["statics"][None])[0, 30:, 0]
    torch.testing.assert_close(vwc[11], alone.detach(), rtol=1e-4, atol=1e-5)


def test_loss_weighs_targets_and_ignores_days_without_truth() -> None:
    module = DroughtLSTM(hidden=4, target_weights={"vwc": 2.0, "q": 0.0})
    predicted = torch.zeros(2, 6, 3)
    truth = torch.ones(2, 4, 3)
    truth[:, :, 0] = 3.0
    assert module._loss(predicted, truth) == pytest.approx((2 * 9 + 1) / 3)
    truth[0, :, 0] = torch.nan
    assert module._loss(predicted, truth) == pytest.approx((2 * 9 / 2 + 1) / 3)
    truth[:] = torch.nan
    assert module._loss(predicted, truth) == 0
    holes = torch.full((1, 5, 3), torch.nan)
    assert torch.isfinite(module(holes, torch.zeros(1, 4))).all()


def test_it_needs_its_datamodule(options: dict[str, Any]) -> None:
    data = DroughtDataModule(**options)
    data.setup("fit")
    with pytest.raises(RuntimeError, match="trainer.fit"):
        ItwinaiTrainer(**QUIET, max_epochs=1).fit(DroughtLSTM(hidden=4), data.train_dataloader())
