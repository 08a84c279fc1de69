"""What goes wrong ends soon, says why, exits with an error, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from itwinai import ItwinaiTrainer
from itwinai.cli.main import main
from itwinai.errors import (
    ConfigurationError,
    MissingCheckpointError,
    MissingMetricError,
    MissingPackageError,
    PayloadError,
    ResourceError,
    WorkerError,
    did_you_mean,
    did_you_mean_file,
)
from tests.conftest import RunCommand, assert_no_process_left, python, start_script, wait_for_files
from tests.support.cases import Regression, loader, make_trainer

# The contract's limit is 30 s after the failure. Starting takes a few seconds more on a slow machine.
LIMIT = 30 + 30

FAILING = "tests/support/failing.py"
STRATEGIES = ("ddp", "horovod", "deepspeed_stage_2")


# ----------------------------------------------------------------------------------------- before anything starts


@pytest.mark.parametrize(
    ("name", "nearest"), [("horovodd", "horovod"), ("deepspeed_stage_4", "deepspeed_stage_"), ("rey", "ray")]
)
def test_unknown_strategy(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no strategy named '{name}'. Did you mean '{nearest}"):
        make_trainer(name, 2)


@pytest.mark.parametrize("devices", [0, -3, -1, "two", "", [], [0, 1], None])
def test_devices_that_are_not_number_of_workers(devices: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"devices=.* is not a number of workers\. Give 1 or more") as error:
        ItwinaiTrainer(accelerator="cpu", devices=devices)
    assert error.value.argument == "devices"


@pytest.mark.parametrize(
    ("written", "names", "meant"),
    [
        ("max_epoch", ["max_steps", "max_epochs"], "max_epochs"),
        ("loss", ["acc", "val_loss"], "val_loss"),  # its end alone
        ("MLFLOW", ["csv", "mlflow"], "mlflow"),
        ("RiverLSMT", ["RiverData", "RiverLSTM"], "RiverLSTM"),
        ("xyz", ["csv", "mlflow"], None),
    ],
)
def test_did_you_mean(written: str, names: list[str], meant: str | None) -> None:
    assert did_you_mean(written, names) == ("" if meant is None else f" Did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("written", "files", "meant"),
    [
        ("confg.yaml", ["a.yaml", "config.yaml"], "config.yaml"),
        ("configs/large.yaml", ["configs/small.yaml", "configs/data.yaml"], None),  # folder and ending are those of all
        ("best.ckpt", ["best-v1.ckpt", "runs/best.ckpt"], "runs/best.ckpt"),
        ("config.yml", ["other.yaml", "config.yaml"], "config.yaml"),
        ("pipe.yaml", ["pipeline.yaml"], "pipeline.yaml"),
    ],
)
def test_did_you_mean_file(written: str, files: list[str], meant: str | None) -> None:
    assert did_you_mean_file(written, files) == ("" if meant is None else f" Did you mean '{meant}'?")


def test_an_argument_that_the_trainer_does_not_have() -> None:
    with pytest.raises(TypeError, match=r"no argument 'max_epoch'\. Did you mean 'max_epochs'\?"):
        ItwinaiTrainer(max_epoch=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("strategy", "package", "line"),
    [
        ("horovod", "horovod", "itwinai install horovod"),
        ("deepspeed", "deepspeed", "pip install 'itwinai[deepspeed]'"),
        ("ray", "ray", "pip install 'itwinai[ray]'"),
        ("ray_horovod", "horovod", "itwinai install horovod"),
    ],
)
def test_missing_package(strategy: str, package: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else found(name, *rest))
    with pytest.raises(MissingPackageError) as raised:
        make_trainer(strategy, 2)
    assert line in str(raised.value)
    assert f"'{package}'" in str(raised.value)


def test_more_devices_than_there_are() -> None:
    there = torch.cuda.device_count()
    with pytest.raises(ConfigurationError, match=f"needs {there + 2} GPUs.* finds {there or 'none'} on this") as raised:
        make_trainer("ddp", str(there + 2), accelerator="gpu")  # type: ignore[arg-type]  # as a flag gives it
    assert isinstance(raised.value, MisconfigurationException)  # which code written for lightning expects


def test_devices_that_contradict_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigurationError, match="torchrun started 2 workers, but devices=4 and num_nodes=1 ask for 4"):
        make_trainer("ddp", 4)


def test_unpicklable_module_is_named() -> None:
    module = Regression()
    module.source = (number for number in range(3))
    with pytest.raises(PayloadError, match="the module Regression .attribute source. cannot be pickled.*torchrun"):
        make_trainer("ddp", 2, max_epochs=1, launcher="payload").fit(module, loader(4))


def test_split_batches_that_do_not_divide() -> None:
    with pytest.raises(ConfigurationError, match="batch_size=5 is not a multiple"):
        make_trainer("ddp", 2, max_epochs=1, split_batches=True).fit(Regression(), loader(5))


class Monitored(Regression):
    """Has a plateau scheduler, and logs what the situation needs."""

    def __init__(self, scheduler_monitor: str = "val_loss") -> None:
        super().__init__()
        self.scheduler_monitor = scheduler_monitor

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.scheduler_monitor}}


@pytest.mark.parametrize(
    ("reader", "callbacks", "monitor"),
    [
        ("EarlyStopping", [EarlyStopping("valloss")], "val_loss"),
        ("ModelCheckpoint", [ModelCheckpoint(monitor="valloss")], "val_loss"),
        ("ReduceLROnPlateau", [], "valloss"),
    ],
)
@pytest.mark.parametrize("sanity_steps", [2, 0])
def test_a_metric_that_is_not_logged_is_found_after_the_first_batches(
    reader: str, callbacks: list[Callback], monitor: str, sanity_steps: int, tmp_path: Path
) -> None:
    flags = {"default_root_dir": tmp_path, "enable_checkpointing": True, "num_sanity_val_steps": sanity_steps}
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=callbacks, val_check_interval=4, **flags)
    with pytest.raises(
        MissingMetricError, match=f"{reader} needs the metric 'valloss'.* Did you mean 'val_loss'"
    ) as raised:
        trainer.fit(Monitored(monitor), loader(8), loader(8))
    assert "train_loss, val_correlation, val_error, val_loss." in str(raised.value)
    assert trainer.global_step == (1 if sanity_steps else 4)  # of 13


@pytest.mark.parametrize("where", ["hook", "condition"])
def test_a_metric_that_is_logged_later_is_waited_for(where: str, tmp_path: Path) -> None:
    class InHook(Regression):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.0)

    class UnderCondition(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                self.log("late", 1.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    stopping = EarlyStopping("late")
    trainer = make_trainer("auto", 1, max_epochs=2, callbacks=[stopping])
    trainer.fit(InHook() if where == "hook" else UnderCondition(), loader(8), loader(8))
    assert stopping.best_score == 1.0


class OwnData(Regression):
    """Has other data on each rank."""

    def train_dataloader(self) -> DataLoader:
        return loader(8, samples=100 if self.global_rank == 0 else 60)


@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_ranks_with_data_of_their_own(strategy: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match="TensorDataset has 100, 60 samples on ranks 0 to 1"):
        make_trainer(strategy, 2, max_epochs=1).fit(OwnData(), val_dataloaders=loader(8))
    assert time.monotonic() - started < LIMIT


def test_more_ray_workers_than_this_machine_can_start() -> None:
    with pytest.raises(ResourceError, match=r"1000 workers were requested.*cores. Request at most \d+"):
        make_trainer("ray", 1000, max_epochs=1).fit(Regression(), loader(8))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["fit", "--strategy", "ray", "--devices", "1000"], "1000 workers were requested"),
        (["tune", "--tune.workers_per_trial", "1000"], "1000 workers per trial were requested"),
    ],
)
def test_a_command_with_more_ray_workers_than_this_machine_can_start(
    command: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as in a new process
    config = {"model": "tests.support.tuned.Regression", "data": "tests.support.tuned.Points"}
    config["tune"] = {"space": {"model.lr": {"uniform": [0, 1]}}, "metric": "val_loss"}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert f"error: {told}, and Ray is started on this machine alone" in printed and "RAY_ADDRESS" in printed


def test_a_loss_that_is_not_number_any_more_is_told_once() -> None:
    class Lost(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * float("nan")

    with pytest.warns(UserWarning, match="'(train|val)_loss' is nan at the end of epoch") as told:
        make_trainer("auto", 1, max_epochs=3).fit(Lost(), loader(8), loader(8))
    assert sum("is nan at the end" in str(one.message) for one in told) == 1


def test_data_that_makes_no_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="Nothing was trained: the training loader has no batches"):
        make_trainer("auto", 1, max_epochs=1).fit(Regression(), loader(8, samples=0))
    # pytest keeps what is logged in a copy within the copy.
    monkeypatch.setattr("itwinai.data.distributed_loaders.rank_zero_info", rank_zero_only(partial(print, flush=True)))
    make_trainer("ddp", 2, max_epochs=1).fit(Regression(), loader(100))
    told = capfd.readouterr().out
    assert "global batch 200 = 2 workers x 100; " in told
    assert "; the data has 103 samples, so an epoch is one step" in told


def test_a_finished_run_that_is_resumed_says_so(tmp_path: Path) -> None:
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path, "max_epochs": 1}
    trainer = make_trainer("auto", 1, **options)
    trainer.fit(Regression(), loader(8))
    path = trainer.checkpoint_callback.best_model_path
    with pytest.warns(UserWarning, match="Nothing is left to train: the checkpoint has been trained for 1 epochs"):
        make_trainer("auto", 1, **options).fit(Regression(), loader(8), ckpt_path=path)
    with pytest.raises(MissingCheckpointError, match="Did you mean '.*epoch=0-step=13.ckpt'"):
        make_trainer("auto", 1, **options).fit(Regression(), loader(8), ckpt_path=path.replace("step=13", "step=12"))


def test_deepspeed_refuses_two_optimizers() -> None:
    class TwoOptimizers(Regression):
        def configure_optimizers(self):  # noqa: ANN202
            (one,), _ = super().configure_optimizers()
            (other,), _ = super().configure_optimizers()
            return [one, other]

    module = TwoOptimizers()
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="returns 2 optimizers.*strategy 'ddp' or 'horovod'"):
        make_trainer("deepspeed_stage_1", 2, max_epochs=1).fit(module, loader(4))


# -------------------------------------------------------------------------------------------------- in the workers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exception_in_one_rank(strategy: str, run_command: RunCommand, tmp_path: Path, no_leftovers: None) -> None:
    ended = run_command(python(FAILING, strategy, "exception"), FAILED_AT=str(tmp_path / "at"))
    assert time.monotonic() - float((tmp_path / "at").read_text()) < 30
    assert ended.code != 0
    assert "not reached" not in ended.output
    # One traceback: the line of the script, the line of the user's module, the rank. The other rank says nothing.
    assert ended.output.count("Traceback (most recent call last)") == 1
    _, _, shown = ended.output.partition("Traceback (most recent call last):\n")
    lines = [line.strip() for line in shown.splitlines() if set(line.strip()) - {"^", "~"}]
    assert lines[1].startswith("make_trainer(") and ".fit(" in lines[1], lines
    assert lines[3] == 'raise ArithmeticError("the loss of step 3 exploded")'
    assert lines[4] == "ArithmeticError: the loss of step 3 exploded"
    assert lines[5].endswith("frames of libraries are hidden; ITWINAI_FULL_TRACEBACK=1 shows them]")
    assert lines[6] == "[rank 1]"
    assert lines[7:] == []


def test_exception_of_rank_0(run_command: RunCommand, no_leftovers: None) -> None:
    ended = run_command(python(FAILING, "ddp", "exception", "0"))
    assert ended.code != 0
    assert ended.output.rstrip().endswith("[rank 0]")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rank_killed(strategy: str, run_command: RunCommand, tmp_path: Path, no_leftovers: None) -> None:
    ended = run_command(python(FAILING, strategy, "sigkill"), FAILED_AT=str(tmp_path / "at"))
    assert time.monotonic() - float((tmp_path / "at").read_text()) < 30
    assert ended.code != 0
    assert "WorkerError: rank 1 was killed by SIGKILL" in ended.output
    assert "c10d" not in ended.output  # what torch says of sockets that are gone
    assert "memory" in ended.output


def test_rank_that_exits(run_command: RunCommand, no_leftovers: None) -> None:
    ended = run_command(python(FAILING, "ddp", "exit"))
    assert ended.code != 0
    assert "rank 1 ended with exit code 3 before it had a result" in ended.output


def test_exception_that_cannot_be_pickled(run_command: RunCommand, no_leftovers: None) -> None:
    ended = run_command(python(FAILING, "ddp", "unpicklable"))
    assert ended.code != 0
    assert "WorkerError: rank 1 failed: " in ended.output
    assert "odd one" in ended.output


@pytest.mark.parametrize("strategy", ["ddp", "horovod", "ray"])
def test_interrupt(strategy: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground process group, as in a terminal."""
    process = start_and_wait_for_step_3(strategy, tmp_path)
    interrupted = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=30)
    output = (tmp_path / "output").read_text()
    assert time.monotonic() - interrupted < 30
    assert code == 1, output
    assert "not reached" not in output
    assert "Traceback" not in output, output
    said = [line for line in output.splitlines() if line.startswith("itwinai: ")]  # under Ray without its prefix
    assert said[0].startswith("itwinai: 2 workers launched by") and said[1].startswith(
        "itwinai: global batch 8 = 2 workers x 4"
    )
    assert said[-1].startswith("itwinai: no checkpoint was saved")
    assert said[-2].startswith("itwinai: stopped in epoch 1")
    assert_no_process_left(process.pid)


def test_killed_caller_takes_its_workers_along(tmp_path: Path) -> None:
    process = start_and_wait_for_step_3("ddp", tmp_path)
    process.kill()
    process.wait()
    assert_no_process_left(process.pid)


def start_and_wait_for_step_3(strategy: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own, and return when both ranks are in the midst of it."""
    process = start_script([FAILING, strategy, "wait", str(folder)], folder / "output")
    wait_for_files(process, [folder / "0", folder / "1"], folder / "output")
    return process


# ------------------------------------------------------------------------------------------------------------ Ray


def test_exception_in_a_ray_actor(local_ray: None) -> None:
    module, trainer = Exploding(), make_trainer("ray", 2, max_epochs=1)
    before = module.net[0].weight.detach().clone()
    with pytest.raises(ArithmeticError, match="step 3 exploded") as raised:
        trainer.fit(module, loader(4))
    assert trainer.global_step == 3 and not torch.equal(module.net[0].weight, before)  # as after a local run
    assert raised.value.__notes__[-1] == "[rank 1]"
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "on_train_batch_start"


def test_ray_actor_killed(local_ray: None) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match="rank 1 died without a Python exception"):
        make_trainer("ray", 2, max_epochs=1).fit(Killed(), loader(4))
    assert time.monotonic() - started < LIMIT


def test_ray_resources_that_cannot_be_met(local_ray: None) -> None:
    from itwinai.strategies import RayStrategy

    started = time.monotonic()
    with pytest.raises(ResourceError, match="asked for 200 CPU, the cluster has 4"):
        make_trainer(RayStrategy(resources_per_worker={"CPU": 100}), 2, max_epochs=1).fit(Regression(), loader(4))
    assert time.monotonic() - started < 30


def test_ray_resources_that_are_in_use(local_ray: None) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from itwinai.strategies import RayStrategy

    taken = placement_group([{"CPU": 3}])
    ray.get(taken.ready())
    try:
        with pytest.raises(ResourceError, match="but it is in use"):
            make_trainer(RayStrategy(timeout=2), 2, max_epochs=1).fit(Regression(), loader(4))
    finally:
        remove_placement_group(taken)


def test_more_than_one_gpu_per_worker() -> None:
    from itwinai.strategies import RayStrategy

    with pytest.raises(ConfigurationError, match="a worker uses one device"):
        RayStrategy(resources_per_worker={"GPU": 2})


class Exploding(Regression):
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 3 and self.global_rank == 1:
            raise ArithmeticError("the loss of step 3 exploded")


class Killed(Regression):
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 3 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class OutOfMemory(Regression):
    """A module whose GPU is full, as torch says it. There is none: the error is made up."""

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize(("strategy", "workers"), [("auto", 1), ("ddp", 2)])
def test_out_of_memory_says_what_to_change(strategy: str, workers: int, no_leftovers: None) -> None:
    trainer = make_trainer(strategy, workers, max_epochs=1, accumulate_grad_batches=3)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as raised:
        trainer.fit(OutOfMemory(), loader(4))
    told = " ".join(raised.value.__notes__)
    assert "accumulate_grad_batches=6" in told and "bf16-mixed" in told
    assert ("deepspeed" in told) == (workers > 1)
