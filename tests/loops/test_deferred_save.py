"""What callbacks want to be saved in a hook is saved when all hooks are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint

from itwinai.callbacks import ModelCheckpoint
from itwinai.loops.deferred_save import DeferredSaves, when_hooks_are_done
from tests.support.cases import Regression, loader, make_trainer


class Counts(Regression):
    """Counts its own hooks in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(3))

    def on_train_batch_end(self, *_: Any) -> None:
        self.counts[0] += 1

    def on_validation_end(self) -> None:
        self.counts[1] += not self.trainer.sanity_checking

    def on_train_epoch_end(self) -> None:
        self.counts[2] += 1


@pytest.mark.parametrize("kind", [ModelCheckpoint, LightningModelCheckpoint])
@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"every_n_train_steps": 3}, [12, 0, 0]),
        ({"save_on_train_epoch_end": True}, [13, 1, 1]),
        ({"save_on_train_epoch_end": False}, [13, 1, 0]),
    ],
)
def test_hooks_of_the_module_are_in_the_checkpoint(
    kind: Any, options: dict[str, Any], counts: list[int], tmp_path: Path
) -> None:
    callback = kind(tmp_path, **options)
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[callback], enable_checkpointing=True)
    trainer.fit(Counts(), loader(8), loader(8))
    saved = torch.load(callback.best_model_path, weights_only=True)
    assert saved["state_dict"]["counts"].tolist() == counts


def test_two_callbacks_do_not_write_one_file(tmp_path: Path) -> None:
    callbacks = [ModelCheckpoint(tmp_path, every="13steps"), ModelCheckpoint(tmp_path, every="1epochs")]
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(Regression(), loader(8))
    assert sorted(path.name for path in tmp_path.glob("*")) == ["epoch=0-step=13-v1.ckpt", "epoch=0-step=13.ckpt"]


class Fails(Counts):
    """Raises in a hook that comes after the callback's."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == 5:
            raise ArithmeticError("the user's own")


def test_a_failing_hook_loses_no_checkpoint(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, every="5steps", filename="{step}")
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[callback], enable_checkpointing=True)
    with pytest.raises(ArithmeticError):
        trainer.fit(Fails(), loader(8))
    assert (tmp_path / "step=5.ckpt").exists()


class Asks(L.Callback):
    """Wants something to be done after a hook, and notes when that is."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        before = int(module.counts[0])
        when_hooks_are_done(trainer, lambda: self.done.append(("batch", int(module.counts[0]) - before)))

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        when_hooks_are_done(trainer, lambda: self.done.append(("train end", int(module.counts[0]))))
        module.counts[0] += 100

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        when_hooks_are_done(trainer, lambda: self.done.append(("at once", 0)))
        assert self.done[-1] == ("at once", 0)


def test_actions_wait_for_the_hooks() -> None:
    asks = Asks()
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[asks], limit_train_batches=2)
    trainer.fit(Counts(), loader(8))
    assert asks.done == [("batch", 1), ("batch", 1), ("train end", 102), ("at once", 0)]


def test_what_waits_can_be_left_undone() -> None:
    saves, done = DeferredSaves(make_trainer("auto", 1)), []
    saves.collects = True
    assert saves.add(lambda: done.append(1)) and saves.postpone("a", lambda: done.append(2)) and saves.is_pending("a")
    saves.forget()
    saves.flush()
    assert not done and not saves.is_pending("a") and not saves.postpone("b", lambda: None)
