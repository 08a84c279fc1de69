"""A checkpoint of any strategy goes on under any other, at the next sample, to the weights of the uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from torch import Tensor

from itwinai.cli.main import main
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer, relative_difference
from tests.support.resumed import EPOCHS, SaveOnce, resume_all, train

LOCAL = ("ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3", "horovod")
WRITERS = (*LOCAL, "ray_ddp")


def in_script(run_command: RunCommand, action: str, strategies: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run ``resumed.py``: workers are copies of its process, and not of this one, in which there is a Ray."""
    ended = run_command(python("tests/support/resumed.py", action, ",".join(strategies), "2", str(folder)))
    assert ended.code == 0, ended.output
    return {strategy: torch.load(folder / f"{action}-{strategy}.pt") for strategy in strategies}


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, run_command: RunCommand, reference: Tensor, local_ray: None
) -> Path:
    """A folder with a checkpoint of each strategy, written in mid-epoch by two workers."""
    folder = tmp_path_factory.mktemp("portable")
    for strategy, weights in in_script(run_command, "write", LOCAL, folder).items():
        assert relative_difference(weights, reference) <= limit(strategy)  # saving has changed nothing
    train("ray_ddp", 2, [SaveOnce(folder / "ray_ddp.ckpt")])
    assert {path.stem for path in folder.glob("*.ckpt")} == set(WRITERS)
    return folder


def limit(*strategies: str) -> float:
    """The contract's limit for a run that has passed through some strategies."""
    return 1e-5 if any("deepspeed" in strategy for strategy in strategies) else 1e-6


def check(weights: dict[str, Tensor], reader: str, reference: Tensor) -> None:
    differences = {writer: relative_difference(weights[writer], reference) for writer in WRITERS}
    assert all(difference <= limit(reader, writer) for writer, difference in differences.items()), differences


@pytest.mark.parametrize("reader", LOCAL)
def test_two_workers_continue(reader: str, written: Path, reference: Tensor, run_command: RunCommand) -> None:
    check(in_script(run_command, "resume", (reader,), written)[reader], reader, reference)


def test_ray_actors_continue(written: Path, reference: Tensor) -> None:
    check(resume_all("ray_ddp", 2, written), "ray_ddp", reference)


def test_one_process_continues(written: Path, reference: Tensor) -> None:
    check(resume_all("auto", 1, written), "auto", reference)


class SavesAsEngine(SaveOnce):
    """Saves as stock lightning does under DeepSpeed: the engine writes a folder."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint()
            del checkpoint["itwinai"]
            LightningDeepSpeedStrategy.save_checkpoint(trainer.strategy, checkpoint, self.path)  # type: ignore[arg-type]


def test_folders_of_an_engine_continue(tmp_path: Path) -> None:
    path = tmp_path / "engine.ckpt"
    train("deepspeed_stage_2", 2, [SavesAsEngine(path, 26)])
    assert (path / "checkpoint").is_dir()
    L.seed_everything(12, verbose=False)
    module = Regression("adamw")
    trainer = make_trainer("deepspeed_stage_2", 2, max_epochs=EPOCHS)
    trainer.fit(module, loader(4), loader(4), ckpt_path=path, weights_only=False)
    assert trainer.global_step == EPOCHS * 13
    plain = tmp_path / "plain.ckpt"
    assert main(["checkpoint", "convert", "--unsafe", str(path), str(plain)]) == 0
    converted = Regression.load_from_checkpoint(plain).state_dict()
    trainer = make_trainer("deepspeed_stage_2", 2)
    trainer.validate(module, loader(4), ckpt_path=path)
    torch.testing.assert_close(dict(module.state_dict()), dict(converted))


def test_module_loads_from_every_checkpoint(written: Path) -> None:
    weights = [Regression.load_from_checkpoint(written / f"{writer}.ckpt").state_dict() for writer in WRITERS]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-5)


def test_lightning_itself_continues(written: Path, tmp_path: Path) -> None:
    """With its own trainer, which takes optimizer and progress from the file and begins the epoch anew."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, devices=1, default_root_dir=tmp_path, **options)
    trainer.fit(Regression("adamw"), loader(8), loader(8), ckpt_path=written / "deepspeed_stage_3.ckpt")
    assert trainer.global_step == 26
