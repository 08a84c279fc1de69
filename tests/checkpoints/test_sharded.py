"""Folders of shards: each worker writes its own part while training goes on, and whoever reads them goes on."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from itwinai import Predictor
from itwinai.callbacks import ModelCheckpoint
from itwinai.checkpoints import discovery, portable_file, sharded
from itwinai.checkpoints.discovery import newest_valid
from itwinai.errors import CheckpointError, DamagedCheckpointError
from itwinai.strategies import DeepSpeedStrategy
from tests.support.cases import Regression, loader, make_trainer, relative_difference
from tests.support.resumed import SaveOnce, train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint of two workers."""
    path = tmp_path_factory.mktemp("sharded") / "a.ckpt"
    train(sharding(), 2, [SaveOnce(path)])
    return path


def sharding() -> DeepSpeedStrategy:
    return DeepSpeedStrategy(stage=3, sharded_checkpoints=True)


@pytest.mark.parametrize(
    ("reader", "workers"),
    [("sharding", 2), ("sharding", 4), ("auto", 1), ("ddp", 2), ("deepspeed_stage_2", 2), ("horovod", 2)],
)
def test_shards_continue(reader: str, workers: int, shards: Path, reference: Tensor) -> None:
    weights = train(sharding() if reader == "sharding" else reader, workers, [], shards)
    assert relative_difference(weights, reference) <= 1e-5


def test_predictor_reads_shards(shards: Path) -> None:
    x = torch.ones(3, 8)
    weights = sharded.read_any(shards)["state_dict"]
    with Predictor.load(shards) as predictor:
        for name, value in predictor.module.state_dict().items():
            assert torch.equal(value, weights[name])
        torch.testing.assert_close(predictor((x,)), predictor.module.net(x).flatten().detach())


def test_damaged_shards_are_found(shards: Path, tmp_path: Path) -> None:
    assert newest_valid([str(shards.parent)]) == str(shards)
    for number, damage in enumerate(("flip", "cut", "remove")):
        copy = tmp_path / f"{number}.ckpt"
        shutil.copytree(shards, copy)
        part = copy / "__1_0.distcp"
        data = bytearray(part.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
            part.write_bytes(data)
        elif damage == "cut":
            part.write_bytes(data[:-1])
        else:
            part.unlink()
        with pytest.raises(DamagedCheckpointError, match="__1_0.distcp"):
            sharded.verify(copy)
    with pytest.warns(UserWarning, match="skipped"):
        assert newest_valid([str(tmp_path)]) is None
    with pytest.raises(DamagedCheckpointError, match="__1_0.distcp is missing"):
        train(sharding(), 2, [], tmp_path / "2.ckpt")


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_shards_of_a_run_that_has_diverged(
    at_once: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "_READ_AT_ONCE", at_once)
    names = [name for name, _ in Regression().named_parameters()]
    weights = {sharded.key_of_weight(name): sharded.read_any(shards)["state_dict"][name].flatten() for name in names}
    assert len(weights) > 1 and sharded.first_not_finite(shards, [*names, "unknown"]) is None
    assert newest_valid([str(shards.parent)], parameters=names) == str(shards)
    weights[sharded.key_of_weight(names[-1])][-1] = float("nan")
    diverged = tmp_path / "a.ckpt"
    shutil.copytree(shards, diverged)
    dcp.save(weights, storage_writer=dcp.FileSystemWriter(diverged), no_dist=True)
    assert sharded.first_not_finite(diverged, names) == names[-1]
    assert sharded.first_not_finite(diverged, names[:-1]) is None
    monkeypatch.setattr(discovery, "verify_any", lambda path: None)  # it has been changed
    with pytest.warns(UserWarning, match="All checkpoints hold parameters that are NaN or infinite"):
        assert newest_valid([str(tmp_path)], parameters=names) == str(diverged)


def test_newest_shards_are_kept(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{step}", every="20steps", keep=2)
    L.seed_everything(11, verbose=False)
    trainer = make_trainer(sharding(), 2, max_epochs=5, callbacks=[callback], enable_checkpointing=True)
    trainer.fit(Regression("adamw"), loader(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=40.ckpt", "step=60.ckpt"]
    trainer.validate(Regression(), loader(4), ckpt_path=tmp_path / "step=60.ckpt")


def save_often(folder: Path, *callbacks: L.Callback, **options: Any) -> None:
    """Train in two workers, with a checkpoint every five steps."""
    L.seed_everything(11, verbose=False)
    saving = ModelCheckpoint(folder, filename="{step}", every="5steps", **options)
    trainer = make_trainer(sharding(), 2, max_epochs=2, callbacks=[saving, *callbacks], enable_checkpointing=True)
    trainer.fit(Regression("adamw"), loader(4))


class SlowDisk(L.Callback):
    """Rank 1's part is not written before two more steps are done."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.two_steps_later = threading.Event()
        self.training_went_on: list[bool] = []
        save = sharded.dcp.save

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.training_went_on.append(trainer.global_rank == 0 or self.two_steps_later.wait(20))
            return save(*args, **kwargs)

        sharded.dcp.save = slow  # the worker ends with this run

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            self.two_steps_later.set()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.training_went_on == [True] * 5


def test_training_continues_meanwhile(tmp_path: Path) -> None:
    save_often(tmp_path, SlowDisk(), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=20.ckpt", "step=25.ckpt"]
    for path in tmp_path.iterdir():
        assert f"step={sharded.verify(path).about['global_step']}.ckpt" == path.name


class FullDisk(L.Callback):
    """The disk of a worker is full at some saves, each time at another point."""

    FAILURES = {10: (1, os, "fsync"), 15: (1, sharded, "_flushed_hash"), 20: (0, portable_file, "write")}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = 0
        write = sharded.ShardWriter.write

        def write_of_step(writer: Any, content: Any, path: str) -> None:
            nonlocal step
            step = int(Path(path).stem.partition("=")[2])
            write(writer, content, path)

        def failing(at: int, original: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                if step == at:
                    raise OSError(28, "No space left on device")
                return original(*args, **kwargs)

            return run

        sharded.ShardWriter.write = write_of_step  # type: ignore[method-assign]  # the worker ends with this run
        for at, (rank, owner, name) in self.FAILURES.items():
            if rank == trainer.global_rank:
                setattr(owner, name, failing(at, getattr(owner, name)))


@pytest.mark.filterwarnings("default::UserWarning")  # the workers have the filters of this process
def test_full_disk_of_one_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All workers know of it: they train on together, and what was written before stays."""
    save_often(tmp_path, FullDisk(), keep=9, on_error="continue")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=25.ckpt", "step=5.ckpt"]
    assert all(sharded.verify(path) for path in tmp_path.iterdir())
    printed = capfd.readouterr().err
    for step, (rank, _, _) in FullDisk.FAILURES.items():
        told = f"step={step}.ckpt could not be written (CheckpointError: rank {rank}: OSError: [Errno 28] No space"
        assert told in printed


def test_full_disk_of_one_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 1: OSError"):
        save_often(tmp_path, FullDisk(), keep=9, background=False)
    assert [path.name for path in tmp_path.iterdir()] == ["step=5.ckpt"]
    assert sharded.verify(tmp_path / "step=5.ckpt")
