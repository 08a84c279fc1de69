"""What `itwinai.compat` takes for granted about how lightning attaches the callbacks of a module."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from itwinai import ItwinaiTrainer, compat
from itwinai.callbacks import TimedProgressBar
from tests.support.cases import Regression, loader


class Bringing(Regression):
    """Brings callbacks."""

    def __init__(self, *brought: Callback) -> None:
        super().__init__()
        self.brought = list(brought)

    def configure_callbacks(self) -> Any:
        return self.brought


class Noting(compat.CallbackConnector):
    """Notes what the module brings."""

    def __init__(self, trainer: Trainer, stock: Any, notes: list[list[Callback]]) -> None:
        super().__init__(trainer, stock)
        self.notes = notes

    def joined(self, brought: list[Callback]) -> None:
        self.notes.append(brought)


def run(trainer: Trainer, module: LightningModule) -> None:
    trainer.fit(module, loader(8), loader(8))


def test_connector_is_told_what_the_module_brings(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss")
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    notes: list[list[Callback]] = []
    compat.replace_callback_connector(trainer, partial(Noting, notes=notes))
    run(trainer, Bringing(stopping))
    assert notes == [[stopping]]
    assert stopping in compat.callbacks(trainer)


def test_callbacks_that_are_set_are_those_that_run() -> None:
    trainer = Trainer(max_epochs=1, barebones=True)
    begun: list[str] = []

    class Beginning(Callback):
        def on_fit_start(self, *args: Any) -> None:
            begun.append("here")

    callback = Beginning()
    compat.set_callbacks(trainer, [callback])
    run(trainer, Regression())
    assert begun == ["here"]
    assert compat.callbacks(trainer) == [callback]


@pytest.mark.parametrize("brought", [ModelCheckpoint, TimedProgressBar, EarlyStopping])
def test_only_defaults_of_the_kind_that_the_module_brings_give_way(brought: type[Callback], tmp_path: Path) -> None:
    own = EarlyStopping("val_loss") if brought is EarlyStopping else brought()
    trainer = ItwinaiTrainer(max_epochs=1, logger=False, default_root_dir=tmp_path, accelerator="cpu", devices=1)
    defaults = {type(callback) for callback in compat.callbacks(trainer)}
    run(trainer, Bringing(own))
    kept = compat.callbacks(trainer)
    assert own in kept
    assert len([callback for callback in kept if isinstance(callback, ModelCheckpoint)]) == 1
    assert len([callback for callback in kept if isinstance(callback, TimedProgressBar)]) == 1
    assert len({type(callback) for callback in kept} - defaults) == (brought is not TimedProgressBar)


def test_callbacks_that_were_given_stay_beside_the_module_s(tmp_path: Path) -> None:
    from itwinai.callbacks import ModelCheckpoint as Ours

    given = Ours(tmp_path / "given")
    trainer = ItwinaiTrainer(
        max_epochs=1,
        logger=False,
        callbacks=[given],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        accelerator="cpu",
        devices=1,
    )
    run(trainer, Bringing(ModelCheckpoint(tmp_path / "brought")))
    assert given in compat.callbacks(trainer)
    assert list((tmp_path / "given").iterdir())
    assert list((tmp_path / "brought").iterdir())
