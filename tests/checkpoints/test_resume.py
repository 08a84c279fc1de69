"""A run that goes on from a checkpoint is, bit by bit, the run that was not interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from itwinai.collectives import gather
from itwinai.errors import CheckpointError, MissingCheckpointError
from tests.support.cases import Regression, loader, make_trainer

SAMPLES, BATCH, EPOCHS = 30, 4, 4  # 8 steps per epoch, the last of two samples


class Random(Regression):
    """Draws random numbers in every step: of torch by dropout, of numpy and Python by hand."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.drawn: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        import random

        self.drawn.append(random.random() + float(np.random.rand()))
        return super().training_step(batch, batch_idx) * self.drawn[-1]


class Scheduled(Random):
    """Asks how many steps there are, for which the loaders are made before the checkpoint is read."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 8, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


class Reversed(BatchSampler):
    """A batch sampler of the user's own."""

    def __init__(self) -> None:
        super().__init__(RandomSampler(range(SAMPLES)), BATCH, False)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([batch[::-1] for batch in super().__iter__()])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[[], DataLoader]] = {
    "shuffled": lambda: DataLoader(dataset(), BATCH, shuffle=True),
    "in order": lambda: DataLoader(dataset(), BATCH),
    "two workers": lambda: DataLoader(dataset(), BATCH, shuffle=True, num_workers=2, prefetch_factor=3),
    "persistent workers": lambda: DataLoader(dataset(), BATCH, shuffle=True, num_workers=1, persistent_workers=True),
    "own generator": lambda: DataLoader(dataset(), BATCH, shuffle=True, generator=seeded()),
    "with replacement": lambda: DataLoader(
        dataset(), BATCH, sampler=RandomSampler(range(SAMPLES), replacement=True, num_samples=SAMPLES)
    ),
    "batch sampler": lambda: DataLoader(dataset(), batch_sampler=Reversed()),
    "no batches": lambda: DataLoader(dataset(), batch_size=None, shuffle=True),
}


class Saves(L.Callback):
    """Saves by hand at a hook, when a number of steps is reached."""

    def __init__(self, path: Path, hook: str, at: int) -> None:
        self.path = path
        self.at = at
        setattr(self, hook, self.save)

    def save(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at and not trainer.sanity_checking and not self.path.exists():
            trainer.save_checkpoint(self.path)


def run(
    loader: Callable[[], DataLoader],
    callbacks: list[L.Callback],
    resume: Path | None = None,
    kind: type[Random] = Random,
    **options: Any,
) -> Any:
    L.seed_everything(11 if resume is None else 12, verbose=False)
    module = kind()
    trainer = make_trainer("auto", 1, max_epochs=EPOCHS, callbacks=callbacks, **options)
    trainer.fit(module, loader(), DataLoader(dataset(), 8), ckpt_path=resume)
    return trainer, module


def check(loader: Callable[[], DataLoader], saves: Saves, steps: int, **options: Any) -> None:
    """Compare the second half of a run with a run that goes on there."""
    whole, module = run(loader, [saves], **options)
    resumed, other = run(loader, [], saves.path, **options)
    assert resumed.global_step == whole.global_step
    assert other.drawn == module.drawn[-len(other.drawn) :]
    assert len(other.drawn) == steps
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    for name, value in whole.callback_metrics.items():
        if name.startswith("val"):
            assert torch.equal(resumed.callback_metrics[name], value), name


@pytest.mark.parametrize("name", LOADERS)
def test_mid_epoch(name: str, tmp_path: Path) -> None:
    per_epoch = SAMPLES if name == "no batches" else 8
    at = per_epoch + 3
    check(LOADERS[name], Saves(tmp_path / "a.ckpt", "on_train_batch_end", at), EPOCHS * per_epoch - at)


@pytest.mark.parametrize("name", ["shuffled", "two workers", "own generator", "batch sampler"])
def test_loaders_that_were_there_before_the_checkpoint_was_read(name: str, tmp_path: Path) -> None:
    for hook, at in (("on_train_batch_end", 3), ("on_train_batch_end", 11), ("on_train_epoch_end", 16)):
        saves = Saves(tmp_path / f"{hook}-{at}.ckpt", hook, at)
        check(LOADERS[name], saves, EPOCHS * 8 - at, kind=Scheduled)


@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_epoch_end", 16),
        ("on_validation_end", 16),
        ("on_train_batch_end", 1),
    ],
)
def test_other_moments(hook: str, at: int, tmp_path: Path) -> None:
    check(LOADERS["shuffled"], Saves(tmp_path / "a.ckpt", hook, at), EPOCHS * 8 - at)


@pytest.mark.parametrize("step", [12, 16])
def test_checkpoints_of_the_callback(step: int, tmp_path: Path) -> None:
    """Also at the end of an epoch, where lightning would leave out the validation."""
    callback = ModelCheckpoint(tmp_path, filename="{step}", every="4steps", save_top_k=-1)
    whole, module = run(LOADERS["shuffled"], [callback], enable_checkpointing=True)
    resumed, other = run(LOADERS["shuffled"], [], tmp_path / f"step={step}.ckpt")
    assert other.drawn == module.drawn[step:]
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_accumulation(tmp_path: Path) -> None:
    # Of eight batches three make a step, at the end of an epoch two.
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 4)
    whole, module = run(LOADERS["shuffled"], [saves], accumulate_grad_batches=3)
    resumed, other = run(LOADERS["shuffled"], [], saves.path, accumulate_grad_batches=3)
    assert resumed.global_step == whole.global_step
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


class Sends(L.Callback):
    """Sends a signal to this process at the end of a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_signal_waits_for_the_whole_step(batch: int, stock: bool, tmp_path: Path) -> None:
    saving = (
        L.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_epochs=2)
        if stock
        else ModelCheckpoint(tmp_path, every="2epochs")
    )
    options = {"accumulate_grad_batches": 3, "enable_checkpointing": True}
    _, whole = run(LOADERS["shuffled"], [], accumulate_grad_batches=3)
    with pytest.raises(SystemExit):
        run(LOADERS["shuffled"], [Sends(batch), saving], **options)
    _, resumed = run(LOADERS["shuffled"], [], tmp_path / "preempted.ckpt", accumulate_grad_batches=3)
    assert len(resumed.drawn) == (3 * 8 - (8 if batch == 7 else 3))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_no_warning_where_nothing_is_lost(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    run(LOADERS["shuffled"], [saves])
    run(LOADERS["shuffled"], [], saves.path)
    assert not [str(warning.message) for warning in recwarn if "resum" in str(warning.message)]


class Stream(IterableDataset):
    """A dataset without indices."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(dataset())  # type: ignore[call-overload]


def test_stream_is_read_again_up_to_there(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    check(lambda: DataLoader(Stream(), BATCH), saves, EPOCHS * 8 - 11)


class KnowsItsPlace(DataLoader):
    """A loader with a state of its own that it does not restore, beside one that has none."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Ignore it."""


def test_warning_where_samples_are_seen_twice(tmp_path: Path) -> None:
    def loaders() -> Any:
        return [KnowsItsPlace(dataset(), BATCH), DataLoader(Stream(), BATCH)]

    class First(Random):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[0], batch_idx)

    def fit(callbacks: list[L.Callback], resume: Path | None = None) -> None:
        trainer = make_trainer("auto", 1, max_epochs=EPOCHS, callbacks=callbacks)
        trainer.fit(First(), loaders(), ckpt_path=resume)

    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    fit([saves])
    with pytest.warns(UserWarning, match="the training loader starts the epoch over"):
        fit([], saves.path)


class StatefulStream(Stream):
    """Knows where it is."""

    def __init__(self) -> None:
        self.index = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = dataset()
        while self.index < SAMPLES:
            self.index += 1
            yield samples[self.index - 1]
        self.index = 0

    def state_dict(self) -> dict[str, int]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.index = state["index"]


@pytest.mark.parametrize(("hook", "at"), [("on_train_batch_end", 11), ("on_train_epoch_end", 16)])
def test_stateful_stream(hook: str, at: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    check(lambda: DataLoader(StatefulStream(), BATCH), Saves(tmp_path / "a.ckpt", hook, at), EPOCHS * 8 - at)
    assert not [warning for warning in recwarn if "epoch over" in str(warning.message)]


def test_other_global_batch_in_mid_epoch(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    run(LOADERS["shuffled"], [saves])
    with pytest.raises(CheckpointError, match="after 3 global batches of 4 samples, .* global batches of 6"):
        run(lambda: DataLoader(dataset(), 6, shuffle=True), [], saves.path)


def test_other_global_batch_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_epoch_end", 16)
    run(LOADERS["shuffled"], [saves])
    trainer, _ = run(lambda: DataLoader(dataset(), 6, shuffle=True), [], saves.path)
    assert trainer.global_step == 16 + 2 * 5


def test_auto_takes_the_newest_valid_one(tmp_path: Path) -> None:
    def callback() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every="5steps", save_top_k=-1)

    options = {"enable_checkpointing": True, "resume": "auto"}
    trainer, module = run(LOADERS["shuffled"], [callback()], **options)  # there is none: it begins anew
    assert len(module.drawn) == 32
    (tmp_path / "step=30.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped: .*step=30.ckpt is damaged: it is empty"):
        trainer, other = run(LOADERS["shuffled"], [callback()], **options)
    assert other.drawn == module.drawn[25:]
    with pytest.raises(CheckpointError, match="step=30.ckpt is damaged"):
        (tmp_path / "step=30.ckpt").write_bytes(b"")
        run(LOADERS["shuffled"], [], tmp_path / "step=30.ckpt")


def test_auto_without_a_checkpoint_is_an_error_but_for_a_fit(tmp_path: Path) -> None:
    trainer = make_trainer("auto", 1, callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True)
    for entry_point in (trainer.validate, trainer.predict):
        with pytest.raises(MissingCheckpointError, match="'auto' finds no valid checkpoint .*Give the path"):
            entry_point(Random(), LOADERS["shuffled"](), ckpt_path="auto")


@pytest.mark.parametrize("name", ["run", ""])
def test_runs_of_a_logger_resume_from_each_other(name: str, tmp_path: Path) -> None:
    def fit(epochs: int) -> list[float]:
        L.seed_everything(11, verbose=False)
        module = Random()
        logger = L.pytorch.loggers.CSVLogger(tmp_path, name=name)
        options = {"logger": logger, "enable_checkpointing": True, "resume": "auto"}
        make_trainer("auto", 1, max_epochs=epochs, **options).fit(module, LOADERS["shuffled"]())
        return module.drawn

    assert [len(fit(epochs)) for epochs in (1, 3, 3)] == [8, 16, 0]


@pytest.mark.parametrize("below", ["", "project", "project/version_7"])
def test_folders_beside_one_that_is_named_are_of_other_runs(below: str, tmp_path: Path) -> None:
    def fit(basin: str) -> int:
        L.seed_everything(11, verbose=False)
        folder = tmp_path / below / basin / "checkpoints"
        logger = L.pytorch.loggers.CSVLogger(tmp_path, name="logs")
        options = {
            "logger": logger,
            "enable_checkpointing": True,
            "resume": "auto",
            "callbacks": [ModelCheckpoint(folder)],
        }
        module = Random()
        make_trainer("auto", 1, max_epochs=2, **options).fit(module, LOADERS["shuffled"]())
        return len(module.drawn)

    assert [fit("basin_a"), fit("basin_b"), fit("basin_a")] == [16, 16, 0]


class Renamed(Regression):
    """Has other parameters."""

    def __init__(self) -> None:
        super().__init__("adamw")
        self.other = nn.Linear(2, 2)


def test_wrong_model(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    run(LOADERS["shuffled"], [saves])
    trainer = make_trainer("auto", 1, max_epochs=EPOCHS)
    with pytest.raises(
        CheckpointError, match=r"does not match .*missing: net.2.bias, .*, other.weight; not in the module: net.3.bias"
    ):
        trainer.fit(Renamed(), LOADERS["shuffled"](), ckpt_path=saves.path)


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*autto .*'auto' for the newest"):
        run(LOADERS["shuffled"], [], tmp_path / "autto")


def test_weights_only_checkpoint_cannot_be_gone_on_from(tmp_path: Path) -> None:
    trainer, module = run(LOADERS["shuffled"], [])
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match="holds the weights only"):
        run(LOADERS["shuffled"], [], tmp_path / "a.ckpt")


class OtherOrder(Random):
    """Gives its parameters to the optimizer in another order, in two groups."""

    def configure_optimizers(self) -> Any:
        last, first = self.net[3], self.net[0]
        groups = [{"params": list(last.parameters())[::-1]}, {"params": list(first.parameters())}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


def test_optimizer_state_follows_the_names(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "a.ckpt", "on_train_batch_end", 11)
    _, module = run(LOADERS["shuffled"], [saves])
    other = OtherOrder()
    make_trainer("auto", 1, max_epochs=EPOCHS).fit(
        other, LOADERS["shuffled"](), DataLoader(dataset(), 8), ckpt_path=saves.path
    )
    for name, value in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_the_learning_rate_finder_leaves_the_fit_as_it_was(tmp_path: Path) -> None:
    """It restores a checkpoint within the fit, from which the fit does not resume."""
    ended = []
    for trainer_class in (L.Trainer, ItwinaiTrainer):
        L.seed_everything(4, verbose=False)
        module = Findable()
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = trainer_class(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[LearningRateFinder(num_training_steps=20, early_stop_threshold=None)],
            **options,
        )
        trainer.fit(module, loader(8))
        ended.append((trainer.global_step, module.lr, module.net[0].weight.detach()))
    assert ended[1][:2] == ended[0][:2] and ended[1][0] == 26
    assert torch.equal(ended[1][2], ended[0][2])


class Findable(Regression):
    """Has a learning rate that can be set."""

    lr = 0.001

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LogsEarly(Regression):
    """Logs some keys in the first batch only."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0 and self.trainer.world_size == 1:
            for name, reduced in (("mean", "mean"), ("most", "max"), ("sum", "sum")):
                self.log(f"early/{name}", 3.0, on_step=False, on_epoch=True, reduce_fx=reduced, sync_dist=name != "sum")
        return super().training_step(batch, batch_idx)


class Gathered(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("early/")}
        pl_module.early = gather(trainer, mine)


def test_keys_that_are_not_logged_again_are_on_all_ranks(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, every="2steps", save_top_k=-1)
    make_trainer("auto", 1, max_epochs=1, callbacks=[saving], enable_checkpointing=True).fit(LogsEarly(), loader(16))
    first = min(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    module = LogsEarly()
    make_trainer("ddp", 2, max_epochs=1, callbacks=[Gathered()]).fit(module, loader(8), ckpt_path=first)
    assert module.early == [{"early/mean": 3.0, "early/most": 3.0, "early/sum": 3.0}] * 2
