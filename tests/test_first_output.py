"""What a first run prints, whole: every line is ours or the user's, whichever strategy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from itwinai.cli.init import write_project
from tests.conftest import RunCommand, python

ITWINAI = ("-m", "itwinai.cli.main")
FLAGS = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.cpu_threads=1"]

SCRIPT = """
import torch
from data import TableData
from model import TableRegressor

from itwinai import ItwinaiTrainer

trainer = ItwinaiTrainer(strategy={strategy!r}, devices={workers}, max_epochs=2, accelerator="cpu", cpu_threads=1,
                         logger="csv", default_root_dir="runs", log_every_n_steps=10, split_batches=True)
trainer.fit(TableRegressor(), datamodule=TableData())
"""

LAUNCHED = {
    "auto": "",
    "ddp": "itwinai: 2 workers launched by itwinai (fork), rank 0 at 127.0.0.1:PORT, device cpu, strategy ddp (gloo)\n",
    "deepspeed": (
        "itwinai: 2 workers launched by itwinai (fork), rank 0 at 127.0.0.1:PORT, device cpu, "
        "strategy deepspeed (ZeRO stage 2, gloo)\n"
    ),
    "horovod": (
        "itwinai: 2 workers launched by itwinai (fork), rank 0 at 127.0.0.1:PORT, device cpu, strategy horovod (gloo)\n"
    ),
    "ray": "itwinai: 2 workers launched by Ray, rank 0 at ADDRESS:PORT, device cpu, strategy ray_ddp (gloo)\n",
}
BODY = """\
   Name     Type        Params
0  network  Sequential  4.7 K
1  val_r2   R2Score     0
2  test_r2  R2Score     0
4.7 K parameters, 0.0187 MB
{batch}epoch 1/2  step {steps}  train_loss X  val_loss X  val_r2 X  SPEED  TIME left
epoch 2/2  step {twice}  train_loss X  val_loss X  val_r2 X  SPEED
`Trainer.fit` stopped: `max_epochs=2` reached.
itwinai: last checkpoint {folder}runs/lightning_logs/version_0/checkpoints/epoch=1-step={twice}.ckpt
"""
BATCH = "itwinai: global batch 64 = 2 workers x 32\n"


def expected(strategy: str, folder: str = "", seed: str = "Seed set to 42\n") -> str:
    """Return all that a run prints."""
    batch = "" if strategy == "auto" else BATCH
    body = BODY.format(batch=batch, steps=44, twice=88, folder=folder)
    return f"{seed}{LAUNCHED[strategy]}{body}"


def without_figures(output: str) -> str:
    """Return an output without what differs from run to run, and without the warning that the machine is busy."""
    lines = [
        line for line in output.splitlines(keepends=True) if not line.startswith("itwinai warning: This machine is")
    ]
    text = "".join(lines)
    text = re.sub(r"rank 0 at 127\.0\.0\.1:\d+", "rank 0 at 127.0.0.1:PORT", text)
    text = re.sub(r"rank 0 at (?!127)[\d.]+:\d+", "rank 0 at ADDRESS:PORT", text)
    text = re.sub(r"(train_loss|val_loss|val_r2) -?[\d.e-]+", r"\1 X", text)
    text = re.sub(r"[\d.]+k? samples/s", "SPEED", text)
    return re.sub(r"SPEED  [\d:]+ left", "SPEED  TIME left", text)


def in_order(output: str, strategy: str) -> list[str]:
    """Return the lines; Ray brings those of workers when it has them, before or after those of this process."""
    lines = output.splitlines()
    return sorted(lines) if strategy == "ray" else lines


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return write_project("tabular", tmp_path / "demo")


@pytest.mark.parametrize("strategy", LAUNCHED)
def test_the_whole_output_of_a_first_fit(strategy: str, demo: Path, run_command: RunCommand) -> None:
    workers = [] if strategy == "auto" else ["--strategy", strategy, "--devices", "2"]
    ended = run_command(python(*ITWINAI, "fit", *workers, *FLAGS), cwd=demo, fresh=strategy == "ray")
    assert ended.code == 0, ended.output
    assert in_order(without_figures(ended.output), strategy) == in_order(expected(strategy), strategy), ended.output


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ray"])
def test_the_whole_output_of_a_script(strategy: str, demo: Path, run_command: RunCommand) -> None:
    (demo / "train.py").write_text(SCRIPT.format(strategy=strategy, workers=1 if strategy == "auto" else 2))
    ended = run_command(python("train.py"), cwd=demo)
    assert ended.code == 0, ended.output
    whole = expected(strategy, seed="")
    assert in_order(without_figures(ended.output), strategy) == in_order(whole, strategy), ended.output


def test_warnings_are_for_people_and_frameworks_talk_on_demand(demo: Path, run_command: RunCommand) -> None:
    config = demo / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 20", "max_epochs: 1").replace("lr: 0.003", "lr: 1.0e+30"))
    ended = run_command(python(*ITWINAI, "fit", *FLAGS[1:]), cwd=demo)
    warned = [line for line in ended.output.splitlines() if "arning" in line and "This machine is" not in line]
    assert len(warned) == 1, ended.output
    assert re.match(r"itwinai warning: '\w+' is (nan|inf) at the end of epoch 0\. Look for missing values", warned[0])
    ended = run_command(python(*ITWINAI, "fit", *FLAGS[1:]), cwd=demo, ITWINAI_VERBOSE="1")
    assert "GPU available: False" in ended.output
