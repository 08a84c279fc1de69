"""What `itwinai.compat.lightning_launching` takes for granted about private names."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.utilities import rank_zero as fabric_rank_zero
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero as pytorch_rank_zero
from lightning_utilities.core import rank_zero as utilities_rank_zero
from torch import nn

from itwinai.compat import lightning_launching, lightning_trainer
from tests.compat.examples import (
    ENTRY_POINTS,
    LaunchedStrategy,
    OnException,
    RecordingLauncher,
    Tiny,
    TinyData,
    make_trainer,
    numbers,
)


def test_launcher_is_asked_for_once_when_the_trainer_is_made() -> None:
    launcher = RecordingLauncher()
    strategy = LaunchedStrategy(launcher)
    trainer = make_trainer(strategy=strategy)
    assert trainer.strategy is strategy
    assert trainer.strategy.launcher is launcher
    assert strategy.made == 1


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_launcher_gets_a_method_of_a_trainer_that_knows_its_module(entry_point: str) -> None:
    launcher = RecordingLauncher()
    trainer, module = make_trainer(strategy=LaunchedStrategy(launcher)), Tiny()
    returned = getattr(trainer, entry_point)(module, numbers(4))
    (launched,) = launcher.launched
    assert launched["function"].__self__ is launched["trainer"] is trainer
    assert launched["module"] is module
    assert module in launched["args"]
    assert returned == (None if entry_point == "fit" else ["returned"])
    assert trainer.global_step == 0


def test_without_launcher_the_entry_point_runs_in_this_process() -> None:
    trainer = make_trainer(strategy=LaunchedStrategy(RecordingLauncher()))
    trainer.strategy.drop_launcher()
    assert trainer.strategy.launcher is None
    trainer.fit(Tiny(), numbers(4))
    assert trainer.global_step == 2


def test_making_no_launcher_means_this_process() -> None:
    trainer = make_trainer(strategy=LaunchedStrategy(None))
    trainer.fit(Tiny(), numbers(4))
    assert trainer.global_step == 2


def test_strategy_has_to_say_which_launcher() -> None:
    with pytest.raises(NotImplementedError):
        lightning_launching.ConfiguresLauncher().make_launcher()


def test_call_in_worker_runs_the_hooks_on_exceptions_and_raises() -> None:
    callback, datamodule = OnException(), TinyData()
    trainer = make_trainer(callbacks=callback)
    lightning_trainer.attach(trainer, Tiny(), datamodule)
    trainer.training = True
    error = ValueError("broken batch")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError) as raised:
        lightning_launching.call_in_worker(trainer, fail)
    assert raised.value is error
    assert callback.exceptions == [error]
    assert datamodule.exceptions == [error]
    assert (trainer.state.status, trainer.state.stage) == (TrainerStatus.INTERRUPTED, None)


def test_call_in_worker_ends_the_process_on_keyboard_interrupt() -> None:
    callback = OnException()
    trainer = make_trainer(callbacks=callback)
    lightning_trainer.attach(trainer, Tiny(), None)

    def interrupt() -> None:
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            lightning_launching.call_in_worker(trainer, interrupt)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert [type(exception) for exception in callback.exceptions] == [KeyboardInterrupt]


def test_call_in_worker_passes_arguments_and_returns() -> None:
    assert lightning_launching.call_in_worker(make_trainer(), lambda *args, **kwargs: (args, kwargs), 1, two=2) == (
        (1,),
        {"two": 2},
    )


def test_srun_may_spread_its_tasks_over_nodes_in_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": 3, "SLURM_PROCID": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RuntimeError, match="ntasks"):
        SLURMEnvironment()
    environment = lightning_launching.SrunEnvironment()
    assert (environment.world_size(), environment.global_rank()) == (3, 2)
    assert (environment.local_rank(), environment.node_rank()) == (0, 1)


@pytest.mark.parametrize("rank_zero", [pytorch_rank_zero, fabric_rank_zero, utilities_rank_zero])
def test_rank_zero_is_known_to_all_of_lightning(rank_zero: Any) -> None:
    ran: list[int] = []
    before = rank_zero.rank_zero_only.rank
    try:
        for rank in (1, 0):
            lightning_launching.set_rank_zero(rank)
            rank_zero.rank_zero_only(ran.append)(rank)
    finally:
        lightning_launching.set_rank_zero(before)
    assert ran == [0]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "ddp"), [(1, 1, False), ("auto", 1, False), (2, 1, True), ("2", 1, True), (1, 2, True)]
)
def test_auto_stands_for_ddp_when_there_are_several_workers(devices: int | str, num_nodes: int, ddp: bool) -> None:
    assert lightning_launching.selects_ddp("cpu", devices, num_nodes) is ddp


def test_ddp_options_hold_for_a_while() -> None:
    strategy = LightningDDPStrategy(static_graph=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        strategy.parallel_devices, strategy.cluster_environment = [torch.device("cpu")], LightningEnvironment()
        with lightning_launching.ddp_options(strategy, {"find_unused_parameters": True}):
            model = strategy._setup_model(nn.Linear(1, 1))
            assert model.find_unused_parameters and model.static_graph
        assert not strategy._setup_model(nn.Linear(1, 1)).find_unused_parameters
        assert lightning_launching.ddp_option_names(strategy) == {"static_graph"}
    finally:
        dist.destroy_process_group()
