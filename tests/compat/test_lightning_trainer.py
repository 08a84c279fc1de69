"""What `itwinai.compat.lightning_trainer` takes for granted about private names."""

from __future__ import annotations

import math
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from itwinai import ItwinaiTrainer
from itwinai.callbacks import TimedProgressBar
from itwinai.compat import lightning_trainer
from tests.compat.examples import ENTRY_POINTS, OnException, Tiny, TinyData, make_trainer, numbers, run
from tests.support.cases import Regression


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


@pytest.mark.parametrize("include_cuda", [True, False])
def test_random_states_come_back_from_where_they_were_collected(include_cuda: bool) -> None:
    states = lightning_trainer.collect_rng_states(include_cuda=include_cuda)
    assert {"torch", "python", "numpy"} <= set(states)
    first = [draw() for _ in range(3)]
    for copied in (states, pickle.loads(pickle.dumps(states))):
        lightning_trainer.set_rng_states(copied)
        assert [draw() for _ in range(3)] == first
    lightning_trainer.set_rng_states(states)
    again = draw()
    assert again == first[0]
    for one, other in zip(again, draw(), strict=True):
        assert one != other


def test_random_states_without_cuda_hold_nothing_of_cuda() -> None:
    assert set(lightning_trainer.collect_rng_states(include_cuda=False)) == {"torch", "python", "numpy"}


def test_attached_trainer_is_like_one_that_has_run() -> None:
    ran, module_of_run, data_of_run = make_trainer(), Tiny(), TinyData()
    ran.fit(module_of_run, datamodule=data_of_run)
    trainer, module, datamodule = make_trainer(), Tiny(), TinyData()
    lightning_trainer.attach(trainer, module, datamodule)
    for one, of_module, of_data in ((ran, module_of_run, data_of_run), (trainer, module, datamodule)):
        assert one.lightning_module is one.model is of_module
        assert of_module.trainer is one
        assert one.datamodule is of_data
        assert of_data.trainer is one


def test_attached_trainer_forgets_the_module_before() -> None:
    trainer, module = make_trainer(), Tiny()
    trainer.fit(Tiny(), numbers(4))
    lightning_trainer.attach(trainer, module, None)
    assert trainer.lightning_module is trainer.model is module


def test_attached_trainer_saves_the_module_and_continues_with_it(tmp_path: Path) -> None:
    trainer, module = make_trainer(), Tiny()
    lightning_trainer.attach(trainer, module, None)
    assert trainer.datamodule is None
    path = tmp_path / "attached.ckpt"
    trainer.save_checkpoint(path)
    weight = module.layer.weight.detach().clone()
    nn.init.zeros_(module.layer.weight)
    assert trainer.test(dataloaders=numbers(4), ckpt_path=path) == [{"test_mean": 1.5}]
    assert torch.equal(module.layer.weight, weight)


def test_callbacks_are_the_user_s_and_lightning_s_own() -> None:
    callback = OnException()
    trainer = make_trainer(callbacks=[callback], enable_checkpointing=True, enable_progress_bar=True)
    assert callback in lightning_trainer.callbacks(trainer)
    for kind in (ModelCheckpoint, ProgressBar):
        assert any(isinstance(own, kind) for own in lightning_trainer.callbacks(trainer))
    lightning_trainer.callbacks(trainer).remove(callback)
    assert callback not in trainer.callbacks


class Configured(Tiny):
    """Sets attributes of its own, also while it runs."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = width
        self.register_buffer("counted", torch.zeros(1))
        self.example_input_array = torch.zeros(2, 1)
        self.callback: Callback | None = None

    def on_fit_start(self) -> None:
        self.started = True


def test_module_internals_are_all_that_is_on_a_module_beside_the_user_s_own() -> None:
    trainer, module = make_trainer(), Configured()
    trainer.fit(module, numbers(4), numbers(4))
    trainer.predict(module, numbers(4))
    own = {"trained", "width", "callback", "started"}
    internals = lightning_trainer.module_internals()
    assert not own & internals
    hyperparameters = {"_hparams", "_hparams_initial", "_hparams_name"}
    assert set(vars(module)) - internals - hyperparameters == own
    assert {"_trainer", "_parameters", "_buffers", "_modules", "_forward_hooks", "training"} <= internals


def test_metrics_written_into_another_trainer_are_read_from_it_like_a_run_s_own() -> None:
    ran = make_trainer()
    ran.fit(Tiny(), numbers(4), numbers(6))
    metrics = lightning_trainer.read_metrics(ran)
    assert set(metrics) == {"callback_metrics", "logged_metrics", "progress_bar_metrics"}
    trainer, module = make_trainer(max_epochs=0), Tiny()
    trainer.fit(module, numbers(4))
    trainer.state = ran.state
    lightning_trainer.write_metrics(trainer, pickle.loads(pickle.dumps(metrics)))
    assert set(trainer.callback_metrics) == {"loss", "loss_step", "loss_epoch", "val_mean"}
    assert set(trainer.logged_metrics) == {"loss_step", "loss_epoch", "val_mean"}
    assert set(trainer.progress_bar_metrics) == {"loss_step", "loss_epoch"}
    for name, values in metrics.items():
        assert values == getattr(trainer, name) == getattr(ran, name)
    # And the trainer can go on: a later run replaces them.
    assert trainer.validate(module, numbers(8)) == [{"val_mean": 3.5}]
    assert trainer.callback_metrics["val_mean"] == 3.5


def test_metrics_are_read_as_values_apart_from_their_graph() -> None:
    trainer = make_trainer()
    trainer._logger_connector._callback_metrics = {"loss": torch.ones(1, requires_grad=True) * 2, "name": 3}
    metrics = lightning_trainer.read_metrics(trainer)["callback_metrics"]
    assert not metrics["loss"].requires_grad
    assert metrics["name"] == 3


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all epochs": ({"max_epochs": 2}, {"max_epochs": 4}),
    "steps, at the end of an epoch": ({"max_epochs": -1, "max_steps": 4}, {"max_steps": 7}),
    "steps, within an epoch": ({"max_epochs": -1, "max_steps": 6}, {"max_steps": 11}),
    "accumulated gradients": ({"max_epochs": 1, "accumulate_grad_batches": 3}, {"max_epochs": 2}),
    "part of each epoch": ({"max_epochs": 1, "limit_train_batches": 3}, {"max_epochs": 3}),
    "with validation": ({"max_epochs": 1, "val_check_interval": 2}, {"max_epochs": 2}),
}


def progress(trainer: Trainer) -> dict[str, Any]:
    loops = {name: getattr(trainer, f"{name}_loop") for name in ENTRY_POINTS}
    return {
        "global_step": trainer.global_step,
        "current_epoch": trainer.current_epoch,
        "num_training_batches": trainer.num_training_batches,
        "max_epochs": trainer.max_epochs,
        "min_epochs": trainer.min_epochs,
        "states": {name: loop.state_dict() for name, loop in loops.items()},
    }


def go_on(trainer: Trainer, limits: dict[str, int], **data: Any) -> list[tuple[int, int, int, list[int]]]:
    """Train on with other limits, and return what was trained on."""
    trainer.fit_loop.max_epochs = limits.get("max_epochs", trainer.fit_loop.max_epochs)
    trainer.fit_loop.epoch_loop.max_steps = limits.get("max_steps", trainer.fit_loop.epoch_loop.max_steps)
    module = Tiny()
    torch.manual_seed(2)
    trainer.fit(module, **data)
    return module.trained


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_loops_written_into_a_fresh_trainer_continue_where_they_ended(run: str, shuffle: bool) -> None:
    limits, new_limits = RUNS[run]
    data = {"train_dataloaders": numbers(8, shuffle=shuffle)}
    if run == "with validation":
        data["val_dataloaders"] = numbers(4)
    ran = make_trainer(**limits)
    ran.fit(Tiny(), **data)
    trainer = make_trainer(**limits)
    lightning_trainer.write_loops(trainer, pickle.loads(pickle.dumps(lightning_trainer.read_loops(ran))))
    assert progress(trainer) == progress(ran)
    assert trainer.global_step > 0
    trained = go_on(trainer, new_limits, **data)
    assert trained == go_on(ran, new_limits, **data)
    assert trained[0][1] == 0  # a new epoch, from its first batch
    assert progress(trainer) == progress(ran)


def test_loops_continue_at_the_next_epoch() -> None:
    """As above, with the numbers spelled out."""
    ran = make_trainer(max_epochs=2)
    ran.fit(Tiny(), numbers(4))
    trainer = make_trainer(max_epochs=2)
    lightning_trainer.write_loops(trainer, lightning_trainer.read_loops(ran))
    assert (trainer.global_step, trainer.current_epoch) == (4, 2)
    trained = go_on(trainer, {"max_epochs": 3}, train_dataloaders=numbers(4))
    assert trained == [(2, 0, 4, [0, 1]), (2, 1, 5, [2, 3])]


def test_loops_that_are_done_do_nothing_more() -> None:
    ran = make_trainer(max_epochs=1)
    ran.fit(Tiny(), numbers(4))
    trainer = make_trainer(max_epochs=1)
    lightning_trainer.write_loops(trainer, lightning_trainer.read_loops(ran))
    assert go_on(trainer, {}, train_dataloaders=numbers(4)) == []


def test_loops_of_evaluation_are_those_of_the_run() -> None:
    ran, trainer = make_trainer(), make_trainer()
    for entry_point in ("validate", "test", "predict"):
        getattr(ran, entry_point)(Tiny(), numbers(6))
    lightning_trainer.write_loops(trainer, lightning_trainer.read_loops(ran))
    assert progress(trainer) == progress(ran)
    assert trainer.predict_loop.batch_progress.total.completed == 3
    assert trainer.validate(Tiny(), numbers(8)) == [{"val_mean": 3.5}]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_only_predict_is_predicting(entry_point: str) -> None:
    trainer = make_trainer()
    getattr(trainer, entry_point)(Tiny(), numbers(4))
    assert lightning_trainer.is_predicting(trainer) is (entry_point == "predict")


class Broken(Tiny):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        raise RuntimeError("broken")


def test_interrupted_trainer_is_like_one_that_an_exception_left() -> None:
    ran, trainer = make_trainer(), make_trainer()
    with pytest.raises(RuntimeError, match="broken"):
        ran.fit(Broken(), numbers(4))
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    lightning_trainer.mark_interrupted(trainer)
    assert trainer.state == ran.state
    assert trainer.interrupted and ran.interrupted
    trainer.fit(Tiny(), numbers(4))
    assert trainer.state.finished


def test_hyperparameters_are_replaced_everywhere() -> None:
    class WithParameters(LightningModule):
        def __init__(self, key: str = "", width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    module = WithParameters("hidden")
    lightning_trainer.replace_hyperparameters(module, {"key": "***", "width": 3})
    assert dict(module.hparams) == {"key": "***", "width": 3} == dict(module.hparams_initial)
    assert b"hidden" not in cloudpickle.dumps(module)
    assert module.hparams_initial is not module.hparams


class Bringing(Regression):
    """Brings callbacks."""

    def __init__(self, *brought: Callback) -> None:
        super().__init__()
        self.brought = list(brought)

    def configure_callbacks(self) -> Any:
        return self.brought


class Noting(lightning_trainer.CallbackConnector):
    """Notes what the module brings."""

    def __init__(self, trainer: Trainer, stock: Any, notes: list[list[Callback]]) -> None:
        super().__init__(trainer, stock)
        self.notes = notes

    def joined(self, brought: list[Callback]) -> None:
        self.notes.append(brought)


def test_connector_is_told_what_the_module_brings(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss")
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    notes: list[list[Callback]] = []
    lightning_trainer.replace_callback_connector(trainer, partial(Noting, notes=notes))
    run(trainer, Bringing(stopping))
    assert notes == [[stopping]]
    assert stopping in lightning_trainer.callbacks(trainer)


def test_callbacks_that_are_set_are_those_that_run() -> None:
    trainer = Trainer(max_epochs=1, barebones=True)
    begun: list[str] = []

    class Beginning(Callback):
        def on_fit_start(self, *args: Any) -> None:
            begun.append("here")

    callback = Beginning()
    lightning_trainer.set_callbacks(trainer, [callback])
    run(trainer, Regression())
    assert begun == ["here"]
    assert lightning_trainer.callbacks(trainer) == [callback]


@pytest.mark.parametrize("brought", [ModelCheckpoint, TimedProgressBar, EarlyStopping])
def test_only_defaults_of_the_kind_that_the_module_brings_give_way(brought: type[Callback], tmp_path: Path) -> None:
    own = EarlyStopping("val_loss") if brought is EarlyStopping else brought()
    trainer = ItwinaiTrainer(max_epochs=1, logger=False, default_root_dir=tmp_path, accelerator="cpu", devices=1)
    defaults = {type(callback) for callback in lightning_trainer.callbacks(trainer)}
    run(trainer, Bringing(own))
    kept = lightning_trainer.callbacks(trainer)
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
    assert given in lightning_trainer.callbacks(trainer)
    assert list((tmp_path / "given").iterdir())
    assert list((tmp_path / "brought").iterdir())


def test_metric_is_what_callbacks_have_read() -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    run(trainer, Regression())
    assert lightning_trainer.callback_metric(trainer, "val_loss") == float(trainer.callback_metrics["val_loss"])
    assert math.isnan(lightning_trainer.callback_metric(trainer, "never"))


def test_datamodule_is_that_of_the_run() -> None:
    trainer, data = make_trainer(), TinyData()
    assert lightning_trainer.datamodule(trainer) is None
    trainer.fit(Tiny(), numbers(4))
    assert lightning_trainer.datamodule(trainer) is None
    trainer.fit(Tiny(), datamodule=data)
    assert lightning_trainer.datamodule(trainer) is trainer.datamodule is data
