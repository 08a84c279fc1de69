"""The private names of lightning and DeepSpeed that checkpoints need: each test fails when one changes under us."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from itwinai import ItwinaiTrainer, compat
from itwinai.callbacks import ModelCheckpoint
from itwinai.data.samplers import WholeSampler
from itwinai.data.streams import StreamLoader
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
    assert found == [[WholeSampler]] * 13
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
    built = compat.with_index_sampler(original, WholeSampler(original.sampler, 8))
    assert (type(built.sampler), built.batch_size, built.dataset) == (WholeSampler, 8, original.dataset)
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
