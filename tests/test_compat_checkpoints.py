"""The private names of lightning and DeepSpeed that checkpoints need: each test fails when one changes under us."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanSquaredError
from torchmetrics.regression import PearsonCorrCoef

from itwinai import ItwinaiTrainer, compat
from itwinai.callbacks import ModelCheckpoint
from itwinai.data.samplers import ResumableSampler
from itwinai.data.stateful_loader import StreamLoader
from tests.support.cases import Regression, loader, make_trainer


class Connector(compat.CheckpointConnector):
    """Writes down which of its public methods were called."""

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self.calls: list[Any] = []

    def complete(self, checkpoint: dict[str, Any], weights_only: bool) -> None:
        self.calls.append(("complete", "state_dict" in checkpoint, weights_only))

    def choose(self, given: str | None) -> str | None:
        self.calls.append(("choose", given))
        return given

    def locate(self, path: str) -> str | None:
        self.calls.append(("locate", path))
        return path

    def adapt(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(("adapt", len(checkpoint["optimizer_states"])))

    def take(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(("take", self.trainer.fit_loop.epoch_loop.global_step))  # the loops are restored

    def explain_mismatch(self, weights: Any, error: RuntimeError) -> None:
        self.calls.append(("mismatch", sorted(weights)[:1], str(error)[:5]))


def connected() -> tuple[L.Trainer, Connector]:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=2, **quiet)
    compat.replace_checkpoint_connector(trainer, Connector)
    connector = compat.checkpoint_connector(trainer)
    assert isinstance(connector, Connector)
    return trainer, connector


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


class Looks(L.Callback):
    """Calls a function at the end of every training batch."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.found: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.found.append(self.look(trainer))


def looked(look: Any, **options: Any) -> tuple[list[Any], ItwinaiTrainer]:
    looks = Looks(look)
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[looks], **options)
    trainer.fit(Regression(), loader(8))
    return looks.found, trainer


def test_training_loaders() -> None:
    found, _ = looked(lambda trainer: [type(loader.sampler) for loader in compat.training_loaders(trainer)])
    assert found == [[ResumableSampler]] * 13
    assert compat.training_loaders(make_trainer("auto", 1)) == []


def test_is_epoch_begun() -> None:
    found, trainer = looked(compat.is_epoch_begun)
    assert found == [True] * 13
    assert not compat.is_epoch_begun(trainer)


def test_is_accumulating() -> None:
    found, _ = looked(compat.is_accumulating, accumulate_grad_batches=3)
    assert found == [True, True, False] * 4 + [False]  # 13 batches: the last is a step of its own


def test_is_stateful() -> None:
    class Own(DataLoader):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    assert compat.is_stateful(Own([1])) and not compat.is_stateful(DataLoader([1]))


def test_warning_of_mid_epoch_is_left_out() -> None:
    from lightning.pytorch.loops import training_epoch_loop

    text = Path(training_epoch_loop.__file__).read_text()
    assert "You're resuming from a checkpoint that ended before the epoch ended" in text


def test_with_index_sampler() -> None:
    original = loader(8, shuffle=True)
    built = compat.with_index_sampler(original, ResumableSampler(original.sampler, 8))
    assert (type(built.sampler), built.batch_size, built.dataset) == (ResumableSampler, 8, original.dataset)
    assert len(built) == len(original)


class Numbers(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def test_with_class() -> None:
    built = compat.with_class(DataLoader(Numbers(), batch_size=2, drop_last=True), StreamLoader)
    assert (type(built), built.batch_size, built.drop_last) == (StreamLoader, 2, True)


def test_record_of_checkpoints(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    trainer = make_trainer("auto", 1, max_epochs=3, callbacks=[callback], enable_checkpointing=True)
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
    assert compat.does_nothing_per_batch(callback_class())
    assert not compat.does_nothing_per_batch(callback_class(every_n_train_steps=3))

    class Own(callback_class):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None: ...

    assert not compat.does_nothing_per_batch(Own())
    patched = callback_class()
    patched.on_train_batch_end = print
    assert not compat.does_nothing_per_batch(patched)


def test_other_signals_stop_the_run_too() -> None:
    def send(trainer: L.Trainer) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as caught:
        looked(send)
    assert caught.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_that_somebody_handles_are_left_to_him() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        found, trainer = looked(lambda trainer: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(received) == len(found) == 13 and trainer.global_step == 13


def test_choice_is_for_fits_only() -> None:
    trainer, connector = connected()
    for function in (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING):
        connector._select_ckpt_path(function, "path", model_provided=True, model_connected=False)
    assert connector.calls == []
    assert connector._select_ckpt_path(TrainerFn.FITTING, "path", model_provided=True, model_connected=True) == "path"
    assert connector.calls == [("choose", "path")]


def test_sharded_state_of_deepspeed() -> None:
    """`flat_states` and `link_sharded_state` lead from a state that was gathered back to the same state."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    # That it works with workers is in tests/checkpoints/test_portability.py; here, that the names are there.
    assert hasattr(DeepSpeedZeroOptimizer, "_lazy_init_hp_params_optimizer_state")
    text = Path(DeepSpeedZeroOptimizer.__init__.__code__.co_filename).read_text()
    assert "self._hp_optimizer_states_linked = False" in text and "self.single_partition_of_fp32_groups" in text
    text = Path(DeepSpeedZeroOptimizer_Stage3.__init__.__code__.co_filename).read_text()
    assert "self.sub_group_to_group_id" in text and "self.fp32_partitioned_groups_flat" in text


class Placing(compat.FitLoop):
    """Writes down what it is told."""

    def loaders_made(self, loader: Any) -> None:
        self.made = loader


def test_fit_loop(tmp_path: Path) -> None:
    trainer, _ = connected()
    compat.replace_fit_loop(trainer, Placing)
    loop: Any = trainer.fit_loop
    assert (type(loop), loop.max_epochs) == (Placing, 2) and loop.combined_loader is None
    trainer.fit(Regression(), loader(8))
    assert loop.made is loop.combined_loader
    assert compat.loader_mode(loop.made) == "max_size_cycle" and loop.last_reload == 0
    loop.last_reload = 1
    assert loop._last_train_dl_reload_epoch == 1
    progress = loop.progress()
    assert progress["epoch_progress"]["total"]["completed"] == 2
    assert loop.combined_loader is loop.made
    other: Any = Placing(trainer, max_epochs=2)
    other.epoch_loop = loop.epoch_loop
    other.load_progress(progress)
    assert other.epoch_progress.total.completed == 2 and other._loaded_from_state_dict
    compat.forget_loading(other)
    assert not other._loaded_from_state_dict and not other.epoch_loop.val_loop.restarting


class Kept(DataLoader):
    """A loader with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"kept": 3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_states_of_loaders_are_loaded() -> None:
    trainer, _ = connected()
    compat.replace_fit_loop(trainer, Placing)
    loop: Any = trainer.fit_loop
    kept = Kept(loader(8).dataset, 8)
    trainer.fit(Regression(), kept)
    loop.on_load_checkpoint(loop.on_save_checkpoint())
    loop.load_loaders()
    assert kept.loaded == {"kept": 3}


@pytest.mark.parametrize("length", [True, False])
def test_loaders_are_iterated_later(length: bool) -> None:
    begun: list[int] = []

    class Noting(DataLoader):
        def __iter__(self) -> Any:
            begun.append(1)
            return super().__iter__()

    combined = CombinedLoader([Noting(range(6) if length else Numbers(), batch_size=2)], "max_size_cycle")  # type: ignore[arg-type]
    compat.iterate_later(combined)
    fetcher = _PrefetchDataFetcher()
    fetcher.setup(combined)
    iter(fetcher)
    assert not begun and fetcher.length == (3 if length else None)
    compat.iterate_now(combined)
    iter(fetcher)
    assert begun == [1] and len(list(fetcher)) == 3


def test_history_of_validation() -> None:
    found, trainer = looked(lambda trainer: compat.is_epoch_over(trainer.fit_loop.epoch_loop))
    assert found == [False] * 12 + [True]
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    assert loop.loaders == []
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Regression(), loader(8), loader(8))
    assert len(loop.loaders) == 1
    history = loop.read_history()
    assert history["reloaded"] == 1 or history["reloaded"] == 0
    loop.write_history({"reloaded": 5, "seen": {0: 7}})
    assert loop.read_history() == {"reloaded": 5, "seen": {**history["seen"], 0: 7}}


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

    with compat.postponing_saves([callback], postpone, coming.__contains__):
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

    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[Uploads(tmp_path)], enable_checkpointing=True)
    trainer.fit(Regression(), loader(8))


class Logs(Regression):
    """Logs a metric and values with all reductions."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for name in ("sum", "max"):
            self.log(name, loss, on_step=True, on_epoch=True, reduce_fx=name)
        self.error(batch[1], batch[1] + 1)
        self.log("error", self.error, on_step=False, on_epoch=True)
        return loss


class Takes(L.Callback):
    """Takes the logged values in mid-epoch, and lets them be made anew of that."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        results = trainer.fit_loop.epoch_loop._results
        for key, metric in list(results.items()):
            state = compat.read_result(metric)
            assert state is not None
            made = compat.make_result(state, trainer)
            assert made.meta == metric.meta  # otherwise the next call of `self.log` would be refused
            compat.write_result(made, state, module.device)
            results[key] = made
        kept = compat.read_metric(module.error)
        module.error.reset()
        assert kept is not None and compat.read_metric(module.error) is None
        compat.write_metric(module.error, kept)


def test_logged_values_are_made_anew() -> None:
    found = []
    for callbacks in ([], [Takes()]):
        L.seed_everything(3)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, callbacks=callbacks, enable_progress_bar=False
        )
        trainer.fit(Logs(), loader(8))
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    epochs = [{name: value for name, value in values.items() if not name.endswith("_step")} for values in found]
    names = ("sum", "max")  # by which also the value of the step is read
    assert {name: value for name, value in epochs[0].items() if name not in names} == {
        name: value for name, value in epochs[1].items() if name not in names
    }
    assert {"train_loss", "sum_epoch", "max_epoch", "error"} <= epochs[0].keys()


def test_metrics_are_merged() -> None:
    one, other, whole = MeanSquaredError(), MeanSquaredError(), MeanSquaredError()
    for number, metrics in enumerate([(one, whole), (other, whole), (other, whole)]):
        for metric in metrics:
            metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0.5, float(number)]))
    kept = compat.read_metric(other)
    assert kept is not None and compat.can_merge(one) and not compat.can_merge(PearsonCorrCoef())
    compat.merge_metric(one, kept)
    torch.testing.assert_close(one.compute(), whole.compute())


def test_validation_that_only_a_stop_brings() -> None:
    def look(trainer: Any) -> Any:
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        trainer.should_stop = True
        found = compat.validates_now(loop, fetcher), compat.is_validation_due(loop, fetcher)
        assert trainer.should_stop
        trainer.should_stop = False
        return found

    looks = Looks(look)
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[looks])
    trainer.fit(Regression(), loader(8), loader(8))
    assert looks.found == [(True, False)] * 12 + [(True, True)]
    loop: Any = trainer.fit_loop.epoch_loop
    compat.skip_next_validation(loop)
    assert compat.skips_next_validation(loop)
    assert compat.iterates_again(loop)
    loop._restarting = True
    assert not compat.iterates_again(loop)


def test_go_on_iterating() -> None:
    trainer = make_trainer("auto", 1)
    connector = compat.logger_connector(trainer)
    compat.go_on_iterating(connector)
    compat.count_iteration(connector)
    assert not compat.is_first_iteration(connector)
