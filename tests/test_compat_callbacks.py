"""What `itwinai.compat` takes for granted about callbacks: how lightning attaches, feeds and finds them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import Strategy
from torch import Tensor

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


# ------------------------------------------------------------------------------------------ what is monitored


class Refusing(Tensor):
    """A tensor that refuses everything."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError(f"{func} is refused")


class Elsewhere(Tensor):
    """A tensor that holds its values elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def test_plain_tensor_shares_memory_and_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    refusing = (2 * weight).sum().as_subclass(Refusing)
    plain = compat.plain_tensor(refusing)
    assert type(plain) is Tensor
    (3 * plain).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0, 6.0]
    parameter = torch.nn.Parameter(torch.ones(1))
    assert type(compat.plain_tensor(parameter)) is Tensor
    assert compat.plain_tensor(parameter).data_ptr() == parameter.data_ptr()


def test_plain_tensor_leaves_those_that_hold_their_values_elsewhere() -> None:
    wrapper = Tensor._make_wrapper_subclass(Elsewhere, (1,))  # type: ignore[attr-defined]
    assert compat.plain_tensor(wrapper) is wrapper


def test_metric_is_what_callbacks_have_read() -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    run(trainer, Regression())
    assert compat.callback_metric(trainer, "val_loss") == float(trainer.callback_metrics["val_loss"])
    assert math.isnan(compat.callback_metric(trainer, "never"))


class Checking(compat.TrainingEpochLoop):
    """Notes what schedulers read."""

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        super().__init__(trainer, **options)
        self.read: list[tuple[str, float]] = []

    def stop_if_agreed(self) -> None:
        pass

    def check_monitored(self, key: str, value: float) -> None:
        self.read.append((key, value))


class Plateau(Regression):
    """Has a scheduler that monitors a value."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def test_loop_is_told_what_a_plateau_scheduler_reads() -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    compat.replace_training_epoch_loop(trainer, Checking)
    run(trainer, Plateau())
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, Checking)
    assert loop.read == [("val_loss", float(trainer.callback_metrics["val_loss"]))]


@pytest.mark.parametrize(("options", "stops"), [({}, True), ({"min_epochs": 2}, False), ({"min_steps": 5}, False)])
def test_fit_can_stop_early_after_its_least_epochs_and_steps(options: dict[str, int], stops: bool) -> None:
    assert compat.can_stop_early(Trainer(max_epochs=3, barebones=True, **options)) is stops


# ------------------------------------------------------------------------------------------ command lines


class Listed:
    """A class that a command line may be asked for."""


class Concealed(compat.unlisted(Listed)):  # type: ignore[misc]
    """A subclass that its short names do not mean."""


def test_short_names_do_not_mean_unlisted_classes() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--one", type=Listed)
    assert parser.parse_args(["--one=Listed"]).one.class_path.endswith(".Listed")
    with pytest.raises(ArgumentError):
        parser.parse_args(["--one=Concealed"])
    given = parser.parse_args([f"--one={__name__}.Concealed"])
    assert type(parser.instantiate_classes(given).one) is Concealed


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (Checkpoint, "ModelCheckpoint"),
        (Strategy, "DDPStrategy"),
        (Strategy, "DeepSpeedStrategy"),
        (Logger, "MLFlowLogger"),
    ],
)
def test_short_names_mean_lightnings_classes(base: type, name: str) -> None:
    import itwinai.callbacks.model_checkpoint
    import itwinai.loggers.mlflow
    import itwinai.strategies.ddp
    import itwinai.strategies.deepspeed  # noqa: F401 - with them imported

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--one", type=base)
    assert parser.parse_args([f"--one={name}"]).one.class_path.startswith("lightning.pytorch.")


def test_arguments_of_a_parser_and_of_its_subcommand() -> None:
    parser, below = ArgumentParser(exit_on_error=False), ArgumentParser(exit_on_error=False)
    parser.add_argument("--size", type=int | None, default=3)
    below.add_argument("--name", type=str, required=True)
    parser.add_subcommands().add_subcommand("run", below)
    size = {one.name: one for one in compat.parser_arguments(parser)}["size"]
    assert (size.flags, size.type, size.required, size.default, size.takes_value) == (
        ("--size",),
        int | None,
        False,
        3,
        True,
    )
    found = {one.name: one for one in compat.parser_arguments(parser, "run")}
    assert found["name"].required and not found["help"].takes_value and "size" not in found


# ------------------------------------------------------------------------------------------ loggers, progress


def test_run_of_wandb_is_opened_in_the_caller_and_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path)
    trainer = Trainer(barebones=False, logger=[logger, CSVLogger(tmp_path)], enable_progress_bar=False)
    assert logger.version is None
    compat.open_runs(trainer)
    assert logger.version == logger.experiment.id
    state = logger.__getstate__()
    assert state["_experiment"] is None
    assert {name for name in state if state[name] != vars(logger).get(name)} <= compat.live_attributes(logger) | {
        "_id",
        "_name",
    }
    assert compat.live_attributes(CSVLogger(tmp_path)) == frozenset()
    wandb.finish()


class Skipping(Regression):
    """Leaves an epoch before its third batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


def test_batches_that_a_hook_skips_have_not_begun() -> None:
    trainer = Trainer(max_epochs=1, barebones=True)
    trainer.fit(Skipping(), loader(8))
    assert compat.begun_batches(trainer.fit_loop.epoch_loop) == 2
