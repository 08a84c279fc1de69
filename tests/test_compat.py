"""What `itwinai.compat` takes for granted about the private parts of lightning and cloudpickle.

Each test here fails when a release of theirs moves what it is about.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import multiprocessing
import pickle
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cloudpickle
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.utilities import rank_zero as fabric_rank_zero
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies import deepspeed as lightning_deepspeed
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities import rank_zero as pytorch_rank_zero
from lightning_utilities.core import rank_zero as utilities_rank_zero
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from itwinai import compat
from itwinai.errors import ConfigurationError
from tests.conftest import RunCommand, python

ENTRY_POINTS = ("fit", "validate", "test", "predict")


class Tiny(LightningModule):
    """One weight, one number per sample; remembers which batches it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.trained: list[tuple[int, int, int, list[int]]] = []

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.trained.append((self.current_epoch, batch_idx, self.global_step, batch.tolist()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch.float().reshape(-1, 1)).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_mean", batch.float().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_mean", batch.float().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TinyData(LightningDataModule):
    """The numbers up to eight, in batches of two."""

    def __init__(self) -> None:
        super().__init__()
        self.exceptions: list[BaseException] = []

    def train_dataloader(self) -> DataLoader:
        return numbers(8)

    def on_exception(self, exception: BaseException) -> None:
        self.exceptions.append(exception)


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


def numbers(size: int, batch_size: int | None = 2, **options: Any) -> DataLoader:
    return DataLoader(Numbers(size), batch_size=batch_size, **options)


def batches_of(loader: Iterable[Tensor]) -> list[Any]:
    return [batch.tolist() for batch in loader]


def make_trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **options,
        }
    )


# ------------------------------------------------------------------------------------------------ launching


class RecordingLauncher(compat.Launcher):
    """Has all that lightning asks of a launcher, and launches nothing."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    @property
    def is_interactive_compatible(self) -> bool:
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        assert trainer is not None
        self.launched.append(
            {"function": function, "args": args, "trainer": trainer, "module": trainer.lightning_module}
        )
        # The entry points check this when the launcher is back.
        trainer.state.status, trainer.state.stage = TrainerStatus.FINISHED, None
        return ["returned"]

    def kill(self, signum: int) -> None:
        pass


class LaunchedStrategy(compat.ConfiguresLauncher, SingleDeviceStrategy):
    def __init__(self, launcher: compat.Launcher | None = None) -> None:
        super().__init__(device=torch.device("cpu"))
        self.made = 0
        self.given = launcher

    def make_launcher(self) -> compat.Launcher | None:
        self.made += 1
        return self.given


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
        compat.ConfiguresLauncher().make_launcher()


class OnException(Callback):
    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.exceptions.append(exception)


def test_call_in_worker_runs_the_hooks_on_exceptions_and_raises() -> None:
    callback, datamodule = OnException(), TinyData()
    trainer = make_trainer(callbacks=callback)
    compat.attach(trainer, Tiny(), datamodule)
    trainer.training = True
    error = ValueError("broken batch")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError) as raised:
        compat.call_in_worker(trainer, fail)
    assert raised.value is error
    assert callback.exceptions == [error]
    assert datamodule.exceptions == [error]
    assert (trainer.state.status, trainer.state.stage) == (TrainerStatus.INTERRUPTED, None)


def test_call_in_worker_ends_the_process_on_keyboard_interrupt() -> None:
    callback = OnException()
    trainer = make_trainer(callbacks=callback)
    compat.attach(trainer, Tiny(), None)

    def interrupt() -> None:
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            compat.call_in_worker(trainer, interrupt)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert [type(exception) for exception in callback.exceptions] == [KeyboardInterrupt]


def test_call_in_worker_passes_arguments_and_returns() -> None:
    assert compat.call_in_worker(make_trainer(), lambda *args, **kwargs: (args, kwargs), 1, two=2) == ((1,), {"two": 2})


def test_srun_may_spread_its_tasks_over_nodes_in_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": 3, "SLURM_PROCID": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RuntimeError, match="ntasks"):
        SLURMEnvironment()
    environment = compat.SrunEnvironment()
    assert (environment.world_size(), environment.global_rank()) == (3, 2)
    assert (environment.local_rank(), environment.node_rank()) == (0, 1)


@pytest.mark.parametrize("rank_zero", [pytorch_rank_zero, fabric_rank_zero, utilities_rank_zero])
def test_rank_zero_is_known_to_all_of_lightning(rank_zero: Any) -> None:
    ran: list[int] = []
    before = rank_zero.rank_zero_only.rank
    try:
        for rank in (1, 0):
            compat.set_rank_zero(rank)
            rank_zero.rank_zero_only(ran.append)(rank)
    finally:
        compat.set_rank_zero(before)
    assert ran == [0]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "ddp"), [(1, 1, False), ("auto", 1, False), (2, 1, True), ("2", 1, True), (1, 2, True)]
)
def test_auto_stands_for_ddp_when_there_are_several_workers(devices: int | str, num_nodes: int, ddp: bool) -> None:
    assert compat.selects_ddp("cpu", devices, num_nodes) is ddp


# ------------------------------------------------------------------------------------------------ DeepSpeed

OVERRIDDEN = {name for name, value in vars(compat.EngineMaker).items() if name[0] == "_" != name[1] and callable(value)}


def test_engine_maker_overrides_what_is_known_here() -> None:
    known = {"_setup_model_and_optimizer", "_initialize_deepspeed_inference", "_init_optimizers"}
    assert known | {"_auto_select_batch_size", "_format_batch_size_and_grad_accum_config"} == OVERRIDDEN


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_engine_maker_overrides_methods_of_lightning_by_their_signature(name: str) -> None:
    ours = inspect.signature(getattr(compat.EngineMaker, name)).parameters.values()
    theirs = inspect.signature(getattr(LightningDeepSpeedStrategy, name)).parameters.values()
    assert [(parameter.name, parameter.kind) for parameter in ours] == [
        (parameter.name, parameter.kind) for parameter in theirs
    ]
    assert [p.default is p.empty for p in ours] == [p.default is p.empty for p in theirs]


class FakeEngines(compat.EngineMaker):
    """Makes engines out of nothing, and remembers of what."""

    strategy_name = "fake"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config=config)
        self.made: list[dict[str, Any]] = []

    def make_engine(self, config: dict[str, Any], model: nn.Module, **options: Any) -> tuple[Any, ...]:
        self.made.append({"config": config, "model": model, **options})
        engine = SimpleNamespace(lr_scheduler=options["lr_scheduler"])
        return engine, options["optimizer"]


@pytest.fixture
def no_deepspeed(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Let lightning believe that DeepSpeed is installed; whoever calls it is found out by the mock."""
    fake = MagicMock(name="deepspeed")
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    monkeypatch.setattr(lightning_deepspeed, "_DEEPSPEED_AVAILABLE", True)
    monkeypatch.setattr(lightning_deepspeed, "_DEEPSPEED_GREATER_EQUAL_0_16", True)
    return fake


class Scheduled(Tiny):
    """With a frozen parameter, an optimizer and a scheduler; or with as many as told."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.number = optimizers
        self.hook_calls = 0

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(self.layer.parameters(), lr=0.01) for _ in range(self.number)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]


def deepspeed_run(strategy: FakeEngines, module: LightningModule, stage: RunningStage, **options: Any) -> Trainer:
    """Bring a strategy to where lightning initialises DeepSpeed."""
    trainer = make_trainer(**options)
    module.trainer = trainer
    trainer.state.fn = TrainerFn.FITTING if stage == RunningStage.TRAINING else TrainerFn.PREDICTING
    trainer.state.stage = stage
    strategy._lightning_module = strategy.model = module
    return trainer


def test_engine_for_training_is_made_by_us_with_the_module_s_optimizer(no_deepspeed: MagicMock) -> None:
    strategy, module = FakeEngines({"zero_optimization": {"stage": 2}}), Scheduled()
    deepspeed_run(strategy, module, RunningStage.TRAINING)
    strategy.init_deepspeed()
    (made,) = strategy.made
    assert made["config"] is strategy.config
    assert made["model"] is module
    assert isinstance(made["optimizer"], torch.optim.SGD)
    assert isinstance(made["lr_scheduler"], torch.optim.lr_scheduler.StepLR)
    assert [id(p) for p in made["model_parameters"]] == [id(p) for p in module.layer.parameters()]
    assert strategy.model.lr_scheduler is None  # taken over: lightning steps it
    assert [config.scheduler for config in strategy.lr_scheduler_configs] == [made["lr_scheduler"]]
    assert strategy.optimizers == [made["optimizer"]]
    no_deepspeed.initialize.assert_not_called()


@pytest.mark.parametrize(
    ("loader", "size"), [(lambda: numbers(8, 4), 4), (lambda: numbers(8, None), 1), (lambda: [torch.ones(1)], 1)]
)
def test_batch_size_that_deepspeed_asks_for_comes_from_the_loader_that_is_there(
    no_deepspeed: MagicMock, loader: Callable[[], Any], size: int
) -> None:
    class Making(Scheduled):
        def train_dataloader(self) -> Any:
            raise AssertionError("made once more")

    for source, expected in ((loader(), size), (Making(), 1)):
        strategy, module = FakeEngines({"zero_optimization": {"stage": 2}}), Making()
        trainer = deepspeed_run(strategy, module, RunningStage.TRAINING)
        trainer.fit_loop._data_source.instance = source
        strategy._format_batch_size_and_grad_accum_config()
        assert strategy.config["train_micro_batch_size_per_gpu"] == expected


@pytest.mark.parametrize("optimizers", [0, 2])
def test_engine_takes_exactly_one_optimizer(no_deepspeed: MagicMock, optimizers: int) -> None:
    strategy, module = FakeEngines({"zero_optimization": {"stage": 1}}), Scheduled(optimizers)
    module.automatic_optimization = False  # lightning refuses several otherwise
    deepspeed_run(strategy, module, RunningStage.TRAINING)
    with pytest.raises(ConfigurationError, match=f"Scheduled.configure_optimizers returns {optimizers} optimizers"):
        strategy.init_deepspeed()


@pytest.mark.parametrize("stage", [2, 3])
def test_engine_for_inference_is_made_by_us_without_an_optimizer(no_deepspeed: MagicMock, stage: int) -> None:
    sharding = {"zero_allow_untested_optimizer": True, "zero_optimization": {"stage": stage}}
    strategy, module = FakeEngines({**sharding, "bf16": {"enabled": True}, "train_batch_size": 4}), Scheduled()
    deepspeed_run(strategy, module, RunningStage.PREDICTING)
    strategy.init_deepspeed()
    (made,) = strategy.made
    assert made == {
        "config": {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}} | (sharding if stage == 3 else {}),
        "model": module,
        "optimizer": None,
        "lr_scheduler": None,
        "model_parameters": [],
    }
    assert strategy.model is not module
    no_deepspeed.initialize.assert_not_called()


def test_hooks_of_an_engine_before_are_removed_before_inference(no_deepspeed: MagicMock) -> None:
    strategy, module = FakeEngines({}), Scheduled()
    module.layer.register_forward_hook(lambda *_: setattr(module, "hook_calls", module.hook_calls + 1))
    deepspeed_run(strategy, module, RunningStage.PREDICTING)
    strategy.init_deepspeed()
    module.layer(torch.zeros(1, 1))
    assert module.hook_calls == 0


def test_engine_does_not_divide_by_the_number_of_accumulated_batches_again(no_deepspeed: MagicMock) -> None:
    strategy = FakeEngines({"train_micro_batch_size_per_gpu": 1})
    deepspeed_run(strategy, Scheduled(), RunningStage.TRAINING, accumulate_grad_batches=4, gradient_clip_val=0.5)
    strategy._init_config_if_needed()
    assert strategy.config["gradient_accumulation_steps"] == 1
    assert strategy.config["gradient_clipping"] == 0.5


def test_whole_weights_are_loaded_into_shards_by_lightning(no_deepspeed: MagicMock) -> None:
    strategy, module = FakeEngines({}), Tiny()
    deepspeed_run(strategy, module, RunningStage.PREDICTING)
    strategy.cluster_environment = MagicMock(**{"global_rank.return_value": 0})
    weights = {name: torch.full_like(value, 7.0) for name, value in module.state_dict().items()}
    strategy.restore_sharded({"state_dict": weights}, strict=True)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    no_deepspeed.zero.GatheredParameters.assert_called()


def test_hooks_of_deepspeed_on_parameters_are_taken_off() -> None:
    def foreign(*args: Any) -> None:
        """A hook of an engine."""

    foreign.__module__ = "deepspeed.runtime.zero.stage3"

    def own(*args: Any) -> None:
        """A hook of the user's."""

    parameter = nn.Parameter(torch.ones(2))
    for hook in (foreign, own):
        parameter.register_hook(hook)
        parameter.register_post_accumulate_grad_hook(hook)
    compat.remove_hooks_of_engine(parameter)
    left = [getattr(parameter, name) for name in compat._PARAMETER_HOOKS]
    assert [list(hooks.values()) for hooks in left] == [[own]] * 2
    compat.remove_hooks_of_engine(nn.Parameter(torch.ones(2)))  # that never had a hook


@pytest.mark.parametrize("as_output", [lambda loss: loss, lambda loss: {"loss": loss}], ids=["loss", "dictionary"])
def test_manager_of_hooks_is_taken_off_a_loss_and_they_still_run(as_output: Any) -> None:
    from deepspeed.runtime.utils import register_output_backward_hooks

    began: list[str] = []
    loss = nn.Parameter(torch.ones(2)).sum()
    output = as_output(loss)
    register_output_backward_hooks(output, lambda: began.append("backward"))
    assert vars(loss)  # what is to be taken off
    compat.remove_manager_of_engine(output)
    assert not vars(loss)
    loss.backward()
    assert began == ["backward"]


NAMES_OF_DEEPSPEED = {
    "runtime/engine.py": (
        "def _backward_epilogue(",
        "def _flush_coalesced_reduction_zero12(self, optimizer)",
        "def _flush_coalesced_reduction_zero3(self, optimizer)",
        "self._running_engine_backward_count = 0",
        "self._running_engine_backward_lock = Lock()",
        "elif self.enable_backward_allreduce and not self.inside_no_sync_ctxt:",
        "elif hasattr(p, 'ds_optim_param'):\n                # do not broadcast",
    ),
    "runtime/zero/stage_1_and_2.py": (
        "self._coalesce_grad_reduction = False",
        "self.use_grad_accum_attribute = True",
        "self.bit16_groups = []",
        "self.all_grad_tensors = {}",
        "self.averaged_gradients = {}",
        "self._offload_accumulated_param_ids = set()",
        "INITIAL_MICRO_STEP_ID = -1",
    ),
    "runtime/zero/stage3.py": (
        "self._coalesce_grad_reduction = False",
        "self.grad_partitions_flat_buffer",
        "self._offload_boundary_param_ids = set()",
        "self.micro_step_id = 0",
        "self.fp32_partitioned_groups_flat",
        "self.grad_position",
        "._z3_optimizer = self",
    ),
    "runtime/zero/parameter_offload.py": ("module.pre_bwd_fn = PreBackwardFunctionForModule", "ctx.module = module"),
    "runtime/base_optimizer.py": ("def clear_backward_seen_flag(self)", "def set_gradient_accumulation_boundary("),
}


@pytest.mark.parametrize("file", NAMES_OF_DEEPSPEED)
def test_private_names_of_deepspeed_are_there(file: str) -> None:
    """What they do is seen in the tests of the strategy; to import DeepSpeed would choose its accelerator."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / file).read_text()
    assert [name for name in NAMES_OF_DEEPSPEED[file] if name not in source] == []


def test_engine_that_cannot_keep_gradients_is_found() -> None:
    def engine(stage: int, **attributes: Any) -> Any:
        return SimpleNamespace(
            optimizer=SimpleNamespace(**attributes),
            zero_optimization=lambda: stage > 0,
            enable_backward_allreduce=True,
        )

    can = engine(2, _coalesce_grad_reduction=False, use_grad_accum_attribute=False)
    assert compat.keep_gradients_whole(can)
    assert can.optimizer._coalesce_grad_reduction and not can.enable_backward_allreduce
    assert compat.keep_gradients_whole(engine(0))
    assert not compat.keep_gradients_whole(engine(1))
    assert not compat.keep_gradients_whole(engine(1, _coalesce_grad_reduction=False, use_grad_accum_attribute=True))


def test_scalars_have_a_dimension_while_an_engine_is_made_and_nothing_is_broadcast() -> None:
    scalar, vector = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
    with compat.making_engine([scalar, vector]):
        assert scalar.shape == (1,) and hasattr(vector, "ds_optim_param")
        scalar.ds_shape = scalar.shape  # type: ignore[attr-defined]
    assert scalar.shape == scalar.ds_shape == () and scalar.item() == 2  # type: ignore[attr-defined]
    assert not hasattr(vector, "ds_optim_param")


def test_second_derivatives_are_noticed_in_training_only() -> None:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
            ctx.module = module
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            return None, gradient

    noticed: list[bool] = []
    module = nn.Linear(1, 1)
    module.pre_bwd_fn = Function  # type: ignore[assignment]
    compat.refuse_second_derivatives(module, lambda: noticed.append(True))
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(Function.apply(module, x), x)
    assert noticed == []
    torch.autograd.grad(Function.apply(module, x), x, create_graph=True)
    assert noticed == [True]
    module.eval()
    torch.autograd.grad(Function.apply(module, x), x, create_graph=True)
    assert noticed == [True]


def test_only_hooks_of_deepspeed_that_look_at_outputs_are_wrapped() -> None:
    def foreign(*args: Any) -> None:
        """A hook of an engine."""

    foreign.__module__ = "deepspeed.runtime.zero.parameter_offload"

    def own(*args: Any) -> None:
        """A hook of the user's."""

    module = nn.Linear(1, 1)
    handle = module.register_forward_hook(foreign)
    module.register_forward_hook(own)
    compat.tolerate_outputs(module, lambda hook: ("wrapped", hook))
    assert list(module._forward_hooks.values()) == [("wrapped", foreign), own]
    handle.remove()  # DeepSpeed's own handle still takes it off
    assert list(module._forward_hooks.values()) == [own]


def test_gradients_are_cleared_by_us_through_the_optimizer_and_its_wrapper() -> None:
    strategy = SingleDeviceStrategy("cpu")
    strategy.optimizers = [torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)]
    cleared: list[bool] = []
    compat.replace_zero_grad(strategy, lambda set_to_none=True: cleared.append(set_to_none))
    strategy.optimizers[0].zero_grad()
    compat.lightning_optimizer(strategy).zero_grad(set_to_none=False)
    assert cleared == [True, False]


def test_hooks_before_a_step_are_those_of_lightning() -> None:
    module, trainer = Tiny(), make_trainer()
    module.trainer = trainer
    trainer.strategy.connect(module)
    calls: list[str] = []
    module.on_before_optimizer_step = lambda optimizer: calls.append("before")  # type: ignore[method-assign]
    module.configure_gradient_clipping = lambda *_, **__: calls.append("clip")  # type: ignore[method-assign]
    compat.call_before_step(Precision(), module, MagicMock())
    assert calls == ["before", "clip"]


# ------------------------------------------------------------------------------------------- random numbers


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


@pytest.mark.parametrize("include_cuda", [True, False])
def test_random_states_come_back_from_where_they_were_collected(include_cuda: bool) -> None:
    states = compat.collect_rng_states(include_cuda=include_cuda)
    assert {"torch", "python", "numpy"} <= set(states)
    first = [draw() for _ in range(3)]
    for copied in (states, pickle.loads(pickle.dumps(states))):
        compat.set_rng_states(copied)
        assert [draw() for _ in range(3)] == first
    compat.set_rng_states(states)
    again = draw()
    assert again == first[0]
    for one, other in zip(again, draw(), strict=True):
        assert one != other


def test_random_states_without_cuda_hold_nothing_of_cuda() -> None:
    assert set(compat.collect_rng_states(include_cuda=False)) == {"torch", "python", "numpy"}


# ----------------------------------------------------------------------------- what a run leaves on its trainer


def test_attached_trainer_is_like_one_that_has_run() -> None:
    ran, module_of_run, data_of_run = make_trainer(), Tiny(), TinyData()
    ran.fit(module_of_run, datamodule=data_of_run)
    trainer, module, datamodule = make_trainer(), Tiny(), TinyData()
    compat.attach(trainer, module, datamodule)
    for one, of_module, of_data in ((ran, module_of_run, data_of_run), (trainer, module, datamodule)):
        assert one.lightning_module is one.model is of_module
        assert of_module.trainer is one
        assert one.datamodule is of_data
        assert of_data.trainer is one


def test_attached_trainer_forgets_the_module_before() -> None:
    trainer, module = make_trainer(), Tiny()
    trainer.fit(Tiny(), numbers(4))
    compat.attach(trainer, module, None)
    assert trainer.lightning_module is trainer.model is module


def test_attached_trainer_saves_the_module_and_goes_on_with_it(tmp_path: Path) -> None:
    trainer, module = make_trainer(), Tiny()
    compat.attach(trainer, module, None)
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
    assert callback in compat.callbacks(trainer)
    for kind in (ModelCheckpoint, ProgressBar):
        assert any(isinstance(own, kind) for own in compat.callbacks(trainer))
    compat.callbacks(trainer).remove(callback)
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
    internals = compat.module_internals()
    assert not own & internals
    hyperparameters = {"_hparams", "_hparams_initial", "_hparams_name"}
    assert set(vars(module)) - internals - hyperparameters == own
    assert {"_trainer", "_parameters", "_buffers", "_modules", "_forward_hooks", "training"} <= internals


def test_metrics_written_into_another_trainer_are_read_from_it_like_a_run_s_own() -> None:
    ran = make_trainer()
    ran.fit(Tiny(), numbers(4), numbers(6))
    metrics = compat.read_metrics(ran)
    assert set(metrics) == {"callback_metrics", "logged_metrics", "progress_bar_metrics"}
    trainer, module = make_trainer(max_epochs=0), Tiny()
    trainer.fit(module, numbers(4))
    trainer.state = ran.state
    compat.write_metrics(trainer, pickle.loads(pickle.dumps(metrics)))
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
    metrics = compat.read_metrics(trainer)["callback_metrics"]
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
def test_loops_written_into_a_fresh_trainer_go_on_where_they_ended(run: str, shuffle: bool) -> None:
    limits, new_limits = RUNS[run]
    data = {"train_dataloaders": numbers(8, shuffle=shuffle)}
    if run == "with validation":
        data["val_dataloaders"] = numbers(4)
    ran = make_trainer(**limits)
    ran.fit(Tiny(), **data)
    trainer = make_trainer(**limits)
    compat.write_loops(trainer, pickle.loads(pickle.dumps(compat.read_loops(ran))))
    assert progress(trainer) == progress(ran)
    assert trainer.global_step > 0
    trained = go_on(trainer, new_limits, **data)
    assert trained == go_on(ran, new_limits, **data)
    assert trained[0][1] == 0  # a new epoch, from its first batch
    assert progress(trainer) == progress(ran)


def test_loops_go_on_at_the_next_epoch() -> None:
    """As above, with the numbers spelled out."""
    ran = make_trainer(max_epochs=2)
    ran.fit(Tiny(), numbers(4))
    trainer = make_trainer(max_epochs=2)
    compat.write_loops(trainer, compat.read_loops(ran))
    assert (trainer.global_step, trainer.current_epoch) == (4, 2)
    trained = go_on(trainer, {"max_epochs": 3}, train_dataloaders=numbers(4))
    assert trained == [(2, 0, 4, [0, 1]), (2, 1, 5, [2, 3])]


def test_loops_that_are_done_do_nothing_more() -> None:
    ran = make_trainer(max_epochs=1)
    ran.fit(Tiny(), numbers(4))
    trainer = make_trainer(max_epochs=1)
    compat.write_loops(trainer, compat.read_loops(ran))
    assert go_on(trainer, {}, train_dataloaders=numbers(4)) == []


def test_loops_of_evaluation_are_those_of_the_run() -> None:
    ran, trainer = make_trainer(), make_trainer()
    for entry_point in ("validate", "test", "predict"):
        getattr(ran, entry_point)(Tiny(), numbers(6))
    compat.write_loops(trainer, compat.read_loops(ran))
    assert progress(trainer) == progress(ran)
    assert trainer.predict_loop.batch_progress.total.completed == 3
    assert trainer.validate(Tiny(), numbers(8)) == [{"val_mean": 3.5}]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_only_predict_is_predicting(entry_point: str) -> None:
    trainer = make_trainer()
    getattr(trainer, entry_point)(Tiny(), numbers(4))
    assert compat.is_predicting(trainer) is (entry_point == "predict")


class Broken(Tiny):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        raise RuntimeError("broken")


def test_interrupted_trainer_is_like_one_that_an_exception_left() -> None:
    ran, trainer = make_trainer(), make_trainer()
    with pytest.raises(RuntimeError, match="broken"):
        ran.fit(Broken(), numbers(4))
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    compat.mark_interrupted(trainer)
    assert trainer.state == ran.state
    assert trainer.interrupted and ran.interrupted
    trainer.fit(Tiny(), numbers(4))
    assert trainer.state.finished


# ---------------------------------------------------------------------------------------------- dataloaders


class DistributedStrategy(SingleDeviceStrategy):
    """Runs in this process, and calls itself distributed, so that loaders are prepared."""

    def __init__(self, is_distributed: bool = True) -> None:
        super().__init__(device=torch.device("cpu"))
        self.is_distributed = is_distributed

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return {"num_replicas": 2, "rank": 1}


class Preparation:
    """Prepares loaders, and remembers them; each gets the batches of another one."""

    def __init__(self) -> None:
        self.prepared: list[tuple[object, RunningStage, bool]] = []

    def __call__(self, loader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        self.prepared.append((loader, stage, map_style))
        return numbers(3, batch_size=1)


class Watched(Tiny):
    """Remembers the batches that it gets from each entry point."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, list[Any]] = {name: [] for name in ENTRY_POINTS}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.got["fit"].append(batch.tolist())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.got["validate"].append(batch.tolist())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.got["test"].append(batch.tolist())

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self.got["predict"].append(batch.tolist())
        return batch


def prepared_trainer(prepare: Callable[..., DataLoader], **options: Any) -> Trainer:
    trainer = make_trainer(**{"strategy": DistributedStrategy(), **options})
    compat.replace_dataloader_preparation(trainer, prepare)
    return trainer


STAGES = {
    "fit": RunningStage.TRAINING,
    "validate": RunningStage.VALIDATING,
    "test": RunningStage.TESTING,
    "predict": RunningStage.PREDICTING,
}


@pytest.mark.parametrize("map_style", [True, False])
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_loaders_are_prepared_by_us(entry_point: str, map_style: bool) -> None:
    prepare, module = Preparation(), Watched()
    loader = numbers(8) if map_style else DataLoader(Stream(8), batch_size=2)
    getattr(prepared_trainer(prepare), entry_point)(module, loader)
    assert prepare.prepared == [(loader, STAGES[entry_point], map_style)]
    assert module.got[entry_point] == [[0], [1], [2]]


def test_loader_for_validation_during_fit_is_prepared_once_for_sanity_check_and_epochs() -> None:
    prepare, module, loaders = Preparation(), Watched(), (numbers(8), numbers(6))
    prepared_trainer(prepare, max_epochs=2, num_sanity_val_steps=1).fit(module, *loaders)
    assert sorted(prepare.prepared, key=lambda prepared: prepared[1]) == [
        (loaders[0], RunningStage.TRAINING, True),
        (loaders[1], RunningStage.VALIDATING, True),
    ]
    assert module.got["validate"] == [[0]] + 2 * [[0], [1], [2]]


def test_each_loader_of_a_collection_is_prepared() -> None:
    prepare, module, loaders = Preparation(), Watched(), [numbers(8), numbers(6)]
    prepared_trainer(prepare).predict(module, loaders)
    assert [loader for loader, _, _ in prepare.prepared] == loaders
    assert module.got["predict"] == 2 * [[0], [1], [2]]


class NoLoader:
    """Yields batches, and is no DataLoader."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.tensor([5, 6])])


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("kind", ["distributed sampler", "no loader", "left alone", "one process"])
def test_other_loaders_are_left_to_lightning(kind: str, entry_point: str) -> None:
    prepare, module = Preparation(), Watched()
    options: dict[str, Any] = {}
    loader: Any = numbers(8)
    expected = [[0, 1], [2, 3], [4, 5], [6, 7]]
    if kind == "distributed sampler":
        sampler: DistributedSampler[int] = DistributedSampler(Numbers(8), num_replicas=2, rank=1, shuffle=False)
        loader, expected = numbers(8, sampler=sampler), [[1, 3], [5, 7]]
    elif kind == "no loader":
        loader, expected = NoLoader(), [[5, 6]]
    elif kind == "left alone":
        options = {"use_distributed_sampler": False}
    else:
        options = {"strategy": DistributedStrategy(is_distributed=False)}
    getattr(prepared_trainer(prepare, **options), entry_point)(module, loader)
    # A single worker's loader is prepared too for training, to go on in mid-epoch, and for prediction.
    stages = [stage for _, stage, _ in prepare.prepared]
    if kind == "one process" and entry_point in ("fit", "predict"):
        assert stages == [STAGES[entry_point]]
        expected = [[0], [1], [2]]
    else:
        assert stages == []
    assert module.got[entry_point] == expected


@pytest.mark.parametrize("kind", ["distributed sampler", "no loader", "left alone", "plain"])
def test_loaders_that_the_user_divides_are_prepared_by_another_function(kind: str) -> None:
    loader: Any = NoLoader() if kind == "no loader" else numbers(8)
    if kind == "distributed sampler":
        loader = numbers(8, sampler=DistributedSampler(Numbers(8), num_replicas=2, rank=1, shuffle=False))
    trainer = make_trainer(strategy=DistributedStrategy(), use_distributed_sampler=kind != "left alone")
    others: list[Any] = []

    def other(loader: Any, stage: RunningStage) -> Any:
        others.append((loader, stage))
        return [torch.tensor([0])]

    compat.replace_dataloader_preparation(trainer, Preparation(), other)
    module = Watched()
    trainer.test(module, loader)
    assert others == ([] if kind == "plain" else [(loader, RunningStage.TESTING)])
    assert module.got["test"] == ([[0], [1], [2]] if kind == "plain" else [[0]])


def test_collection_of_the_user_is_prepared_from_the_user_s_loaders_again() -> None:
    prepare = Preparation()
    loaders = [numbers(8), DataLoader(Stream(8), batch_size=2)]
    collection = CombinedLoader(list(loaders), "sequential")
    for _ in range(2):
        prepared_trainer(prepare).predict(Watched(), collection)
    assert [loader for loader, _, _ in prepare.prepared] == 2 * loaders


def test_preparation_travels_with_the_trainer() -> None:
    trainer = cloudpickle.loads(cloudpickle.dumps(prepared_trainer(Preparation())))
    connector = trainer._data_connector
    assert connector._prepare_dataloader.args[0] is connector
    assert connector._prepare_dataloader(numbers(2), shuffle=False, mode=RunningStage.TESTING).dataset.size == 3
    module = Watched()
    trainer.test(module, numbers(8))
    assert module.got["test"] == [[0], [1], [2]]


class Reversed(Sampler[Any]):
    """Indices from the last to the first, alone or in batches, which remembers the epochs announced to it."""

    def __init__(self, size: int, batch_size: int | None = None) -> None:
        self.size = size
        self.batch_size = batch_size
        self.epochs: list[int] = []

    @property
    def sampler(self) -> Reversed:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[Any]:
        indices = reversed(range(self.size))
        return iter(BatchSampler(indices, self.batch_size, False)) if self.batch_size else indices


def in_hook(make: Callable[[], DataLoader], **options: Any) -> list[Any]:
    """Make a loader in a module's hook, draw it from another sampler, and return the batches trained on."""

    class WithLoader(Watched):
        def train_dataloader(self) -> DataLoader:
            return make()

    def prepare(loader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        if not map_style:
            return compat.with_batch_size(loader, 3)
        batched = loader.batch_sampler is not None
        return compat.with_sampler(loader, Reversed(len(loader.dataset), 3 if batched else None), stage)

    module = WithLoader()
    prepared_trainer(prepare, **options).fit(module)
    return module.got["fit"]


class ScaledLoader(DataLoader):
    """With arguments of its own, which are nowhere to be found afterwards."""

    def __init__(self, size: int, scale: int, **options: Any) -> None:
        super().__init__(Numbers(size), collate_fn=lambda samples: scale * torch.tensor(samples), **options)


class RememberingLoader(DataLoader):
    """With an argument of its own, which it keeps under its name."""

    def __init__(self, dataset: Any, name: str, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.name = name


class SizedBatches(Sampler[list[int]]):
    """A batch sampler that lightning could not build anew: it wants sizes, and has no sampler."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(range(sum(self.sizes)))
        return ([next(indices) for _ in range(size)] for size in self.sizes)


def collate(samples: Sequence[int]) -> Tensor:
    return 10 * torch.tensor(samples)


def initialise(worker: int) -> None:
    pass


KEPT: dict[str, Any] = {
    "num_workers": 2,
    "collate_fn": collate,
    "pin_memory": False,
    "timeout": 7,
    "worker_init_fn": initialise,
    "prefetch_factor": 3,
    "persistent_workers": True,
    "generator": torch.Generator(),
    "multiprocessing_context": "spawn",
}


@pytest.mark.parametrize("batch_size", [4, None])
def test_loader_keeps_its_dataset_and_all_other_options_with_another_sampler(batch_size: int | None) -> None:
    loader = numbers(8, batch_size, **KEPT)
    sampler = Reversed(8, batch_size)
    of_the_user = (loader.sampler, loader.batch_sampler)
    built = compat.with_sampler(loader, sampler, RunningStage.TRAINING)
    assert (loader.sampler, loader.batch_sampler) == of_the_user
    assert built is not loader
    assert built.dataset is loader.dataset
    assert (built.batch_sampler if batch_size else built.sampler) is sampler
    assert {name: getattr(built, name) for name in KEPT} == {name: getattr(loader, name) for name in KEPT}


@pytest.mark.parametrize(
    ("loader", "batches"),
    [
        (numbers(5), [[4, 3, 2], [1, 0]]),
        (numbers(5, shuffle=True, drop_last=True), [[4, 3, 2], [1, 0]]),
        (DataLoader(Numbers(5), batch_sampler=SizedBatches(1, 4)), [[4, 3, 2], [1, 0]]),
        (numbers(3, batch_size=None), [2, 1, 0]),
        (numbers(3, batch_size=None, sampler=[1, 1]), [2, 1, 0]),
    ],
    ids=["plain", "shuffled", "batch sampler", "no batches", "no batches but a sampler"],
)
@pytest.mark.parametrize("stage", STAGES.values())
def test_loader_draws_from_the_sampler_it_is_given(stage: RunningStage, loader: DataLoader, batches: list[Any]) -> None:
    sampler = Reversed(len(loader.dataset), None if loader.batch_sampler is None else 3)
    built = compat.with_sampler(loader, sampler, stage)
    assert [batch if isinstance(batch, int) else batch.tolist() for batch in built] == batches
    assert len(built) == len(batches)


def test_loader_of_a_user_s_own_class_keeps_its_class_and_attributes() -> None:
    loader = RememberingLoader(Numbers(5), "mine", batch_size=2)
    built = compat.with_sampler(loader, Reversed(5, 3), RunningStage.TRAINING)
    assert type(built) is RememberingLoader
    assert built.name == "mine"
    assert batches_of(built) == [[4, 3, 2], [1, 0]]


def late(loader: DataLoader) -> DataLoader:
    """Set an attribute on a finished loader, as users do in their hooks."""
    loader.collate_fn = collate
    return loader


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: numbers(5), [[4, 3, 2], [1, 0]]),
        (lambda: numbers(5, shuffle=True, drop_last=True), [[4, 3, 2], [1, 0]]),
        (lambda: ScaledLoader(5, 100, batch_size=2), [[400, 300, 200], [100, 0]]),
        (lambda: ScaledLoader(5, scale=100, batch_size=2, shuffle=True), [[400, 300, 200], [100, 0]]),
        (lambda: DataLoader(Numbers(5), batch_sampler=SizedBatches(1, 4)), [[4, 3, 2], [1, 0]]),
        (
            lambda: DataLoader(Numbers(5), batch_sampler=BatchSampler(range(5), batch_size=4, drop_last=True)),
            [[4, 3, 2], [1, 0]],
        ),
        (lambda: late(numbers(5)), [[40, 30, 20], [10, 0]]),
        (lambda: DataLoader(Stream(5), batch_size=2), [[0, 1, 2], [3, 4]]),
        (lambda: ScaledStream(5, scale=100, batch_size=2, drop_last=True), [[0, 100, 200]]),
    ],
    ids=[
        "plain",
        "shuffled",
        "own class",
        "own class, by keyword",
        "batch sampler",
        "torch's batch sampler",
        "attribute set late",
        "iterable",
        "own class, iterable",
    ],
)
def test_loader_made_in_a_hook_is_built_anew(make: Callable[[], DataLoader], batches: list[Any]) -> None:
    assert in_hook(make) == batches


class ScaledStream(DataLoader):
    def __init__(self, size: int, scale: int, **options: Any) -> None:
        super().__init__(Stream(size), collate_fn=lambda samples: scale * torch.tensor(samples), **options)


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: DataLoader(Numbers(5), 2), [[4, 3, 2], [1, 0]]),
        (lambda: DataLoader(Numbers(5), 2, True), [[4, 3, 2], [1, 0]]),
        (lambda: DataLoader(Stream(5), 2), [[0, 1, 2], [3, 4]]),
    ],
    ids=["batch size", "batch size and shuffle", "iterable"],
)
def test_loader_made_in_a_hook_may_have_positional_arguments(
    make: Callable[[], DataLoader], batches: list[Any]
) -> None:
    assert in_hook(make) == batches


def test_loader_made_in_a_hook_may_be_returned_again() -> None:
    loaders: list[DataLoader] = []

    def make() -> DataLoader:
        loaders.append(loaders[0] if loaders else numbers(5, shuffle=True))
        return loaders[0]

    assert in_hook(make, max_epochs=2, reload_dataloaders_every_n_epochs=1) == 2 * [[4, 3, 2], [1, 0]]
    assert len(loaders) == 2


class Computed(DataLoader):
    """Computes its length in the constructor, from arguments that have other names."""

    def __init__(self, samples: int, size: int, times: int = 1) -> None:
        super().__init__(Numbers(samples), size)
        self.number = times * -(-samples // size)

    def __len__(self) -> int:
        return self.number


def test_length_that_was_computed_before_follows_the_sampler() -> None:
    built = compat.with_sampler(Computed(8, 2), Reversed(8, 4), RunningStage.TRAINING)
    assert (len(built), batches_of(built)) == (2, [[7, 6, 5, 4], [3, 2, 1, 0]])
    assert isinstance(built, Computed) and type(built).__name__ == "Computed"
    same = compat.with_sampler(Computed(8, 2), Reversed(8, 2), RunningStage.TRAINING)
    assert type(same) is Computed
    with pytest.raises(ConfigurationError, match="has a length of its own, 8, with 4 batches in its sampler"):
        compat.with_sampler(Computed(8, 2, times=2), Reversed(8, 4), RunningStage.TRAINING)


class Repeating(DataLoader):
    """Begins to iterate in its constructor, to keep its processes from one epoch to the next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.iterator = super().__iter__()

    def __iter__(self) -> Any:
        for _ in range(len(self)):
            yield next(self.iterator)


def test_loader_that_has_begun_to_iterate_is_made_again() -> None:
    built = compat.with_sampler(Repeating(Numbers(4), batch_size=2), Reversed(4, 2), RunningStage.TRAINING)
    assert type(built) is Repeating and batches_of(built) == [[3, 2], [1, 0]]
    assert not compat.iterates_plainly(built)
    assert compat.iterates_plainly(RememberingLoader(Numbers(4), "mine"))

    class Closed(Repeating):
        def __init__(self, samples: int) -> None:
            super().__init__(Numbers(samples))

    with pytest.raises(ConfigurationError, match="begins to iterate in its constructor"):
        compat.with_sampler(Closed(4), Reversed(4, 2), RunningStage.TRAINING)


def test_sampler_that_a_loader_keeps_under_another_name_is_replaced_too() -> None:
    class Kept(DataLoader):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.kept = self.batch_sampler

        def __iter__(self) -> Any:
            return iter(self.kept)

    built = compat.with_sampler(Kept(Numbers(4), 2), Reversed(4, 2), RunningStage.TRAINING)
    assert list(built) == [[3, 2], [1, 0]]


def test_persistent_processes_stay_with_their_loader() -> None:
    loader = numbers(4, num_workers=1, persistent_workers=True)
    own = iter(loader)
    built = compat.with_sampler(loader, Reversed(4, 2), RunningStage.TRAINING)
    assert batches_of(built) == [[3, 2], [1, 0]]
    assert loader._iterator is own is not built._iterator
    assert batches_of(loader) == [[0, 1], [2, 3]]


def test_iterators_of_a_loader_may_be_wrapped() -> None:
    loader = numbers(4)
    built = compat.with_iterator(loader, lambda make: [10 * batch for batch in make()].__iter__())
    assert batches_of(built) == [[0, 10], [20, 30]]
    assert batches_of(loader) == [[0, 1], [2, 3]]
    built = compat.with_worker_init(loader, initialise)
    assert built.worker_init_fn is initialise and loader.worker_init_fn is None


def test_seed_that_a_loader_s_process_tells() -> None:
    compat.set_seed_of_loader_worker(3)  # in no such process

    class Telling(Numbers):
        def __getitem__(self, index: int) -> int:
            compat.set_seed_of_loader_worker(7)
            info = torch.utils.data.get_worker_info()
            assert info is not None
            return info.seed

    assert batches_of(DataLoader(Telling(2), 2, num_workers=1)) == [[7, 7]]


def test_lightning_seeds_the_processes_of_loaders_when_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compat.seeds_loader_workers(numbers(2))
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    assert compat.seeds_loader_workers(numbers(2))
    assert not compat.seeds_loader_workers(numbers(2, worker_init_fn=initialise))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_hooks_that_make_loaders_run_in_a_context(entry_point: str) -> None:
    within: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        within.append("begins")
        yield
        within.append("ends")

    class Making(Watched):
        def train_dataloader(self) -> Any:
            assert within[-1] == "begins"
            return numbers(4)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    trainer = make_trainer(max_epochs=1)
    compat.make_loaders_within(trainer, context)
    getattr(trainer, entry_point)(Making())
    assert within == ["begins", "ends"] * (2 if entry_point == "fit" else 1)


def test_samplers_and_loaders_of_predictions() -> None:
    trainer = make_trainer()
    assert compat.prediction_loaders(trainer) == []
    trainer.predict(Tiny(), numbers(4))
    (loader,) = compat.prediction_loaders(trainer)
    assert type(compat.without_index_wrapper(loader.batch_sampler)) is BatchSampler
    sampler = Reversed(4, 2)
    assert compat.without_index_wrapper(sampler) is sampler


@pytest.mark.parametrize("batch_size", [2, None])
def test_epochs_are_announced_to_the_sampler(batch_size: int | None) -> None:
    sampler = Reversed(8, batch_size)
    trainer = prepared_trainer(lambda loader, stage, _: compat.with_sampler(loader, sampler, stage), max_epochs=3)
    trainer.fit(Tiny(), DataLoader([torch.ones(1)] * 8, batch_size))
    assert sorted(set(sampler.epochs)) == [0, 1, 2]


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[Any] = []
        self.epoch: Any = None

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction.tolist(), batch_indices))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        self.epoch = batch_indices


def test_prediction_writers_get_the_indices_of_every_batch() -> None:
    writer = Writer()
    trainer = prepared_trainer(
        lambda loader, stage, _: compat.with_sampler(loader, Reversed(5, 3), stage), callbacks=writer
    )
    trainer.predict(Tiny(), numbers(5))
    assert writer.batches == [([4, 3, 2], [4, 3, 2]), ([1, 0], [1, 0])]
    assert writer.epoch == [[[4, 3, 2], [1, 0]]]


@pytest.mark.parametrize("drop_last", [False, True])
def test_loader_of_an_iterable_dataset_keeps_all_but_the_batch_size(drop_last: bool) -> None:
    loader = RememberingLoader(Stream(7), "mine", batch_size=4, drop_last=drop_last, collate_fn=collate)
    built = compat.with_batch_size(loader, 2)
    assert type(built) is RememberingLoader
    assert (built.name, built.dataset, built.batch_size) == ("mine", loader.dataset, 2)
    assert batches_of(built) == [[0, 10], [20, 30], [40, 50], [60]][: 3 if drop_last else 4]
    assert loader.batch_size == 4


def test_loader_of_an_iterable_dataset_keeps_its_workers() -> None:
    loader = DataLoader(Stream(7), batch_size=4, **KEPT)
    built = compat.with_batch_size(loader, 2)
    assert {name: getattr(built, name) for name in KEPT} == {name: getattr(loader, name) for name in KEPT}


# ---------------------------------------------------------------------------------------------- cloudpickle


def receive(pipe: Any) -> None:
    """Run in another process: unpickle a class, and say under which id it is known there."""
    received = pickle.loads(pipe.recv_bytes())
    class_id = compat.dynamic_class_id(received)
    pipe.send((received.__name__, class_id, compat.dynamic_class(class_id) is received))


def test_class_sent_by_value_has_the_same_id_on_both_sides() -> None:
    # Forked before there is the class, and because another Python would take seconds to import lightning.
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=receive, args=(theirs,))
    process.start()
    theirs.close()

    class Local:
        pass

    ours.send_bytes(cloudpickle.dumps(Local))
    class_id = compat.dynamic_class_id(Local)
    assert class_id is not None
    assert compat.dynamic_class(class_id) is Local
    assert ours.recv() == ("Local", class_id, True)
    process.join()


def test_importable_class_has_no_id() -> None:
    cloudpickle.dumps(LightningModule)
    assert compat.dynamic_class_id(LightningModule) is None


# ------------------------------------------------------------------------------------------------- warnings


def test_only_known_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with compat.known_noise_silenced():
            CombinedLoader([[1, 2]])
            warnings.warn("the user's own", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the user's own"]


def test_noise_is_silenced_for_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compat.VERBOSE, raising=False)
    filters = list(warnings.filters)
    with compat.known_noise_silenced():
        Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU")
        pytorch_rank_zero.rank_zero_info("the user's own")
    assert [record.getMessage() for record in caplog.records] == ["the user's own"]
    assert list(warnings.filters) == filters
    pytorch_rank_zero.rank_zero_info("GPU available: False, used: False")
    assert len(caplog.records) == 2
    monkeypatch.setenv(compat.VERBOSE, "1")
    with compat.known_noise_silenced():
        Trainer(accelerator="cpu", devices=1, logger=True)
    said = [record.getMessage()[:13] for record in caplog.records[2:]]
    assert said == ["GPU available", "TPU available", "💡 Tip: For se"]


def test_torch_prints_errors_alone_in_workers(run_command: RunCommand) -> None:
    code = "import itwinai.compat as c, torch; c.silence_sockets() if %s else 0; "
    code += "import torch.distributed as d; s = d.TCPStore('localhost', 0, 1, True); "
    code += "d.TCPStore('localhost', s.port, 1, False).wait(['never'], __import__('datetime').timedelta(seconds=0.2))"
    assert "[c10d]" in run_command(python("-c", code % "False")).output
    assert "[c10d]" not in run_command(python("-c", code % "True")).output


def test_ray_prints_rank_0_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    kept: list[dict[str, Any]] = []
    handlers, dispatcher.handlers = dispatcher.handlers, [("ray_print_logs", functools.partial(kept.append))]
    try:
        for _ in range(2):
            compat.print_rank_0_plainly()
        for rank in (0, 1):
            dispatcher.emit({"actor_name": f"rank {rank}", "is_err": False, "lines": ["a", "b"], "pid": 1})
    finally:
        dispatcher.handlers = handlers
    assert capsys.readouterr().out == "a\nb\n"
    assert [data["actor_name"] for data in kept] == ["rank 1"]


# -------------------------------------------------------------------------------------------- torch's DDP


def test_ddp_tells_how_long_its_exchange_takes() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
        assert compat.exchange_time(model) == (0, 0, 0)
        compat.sample_exchanges(model, 1)
        for _ in range(20):  # beyond the first ten, which are always measured
            model(torch.ones(4, 64)).sum().backward()
        total, overlapped, computing = compat.exchange_time(model)
        assert 0 <= overlapped <= total < 1
        assert overlapped <= computing < 1
        assert total > 0
        measured = model._get_ddp_logging_data()
        before = measured["backward_comm_time_start"]
        model(torch.ones(4, 64)).sum().backward()
        model(torch.ones(4, 64)).sum().backward()
        assert model._get_ddp_logging_data()["backward_comm_time_start"] > before
    finally:
        dist.destroy_process_group()


def test_ddp_options_hold_for_a_while() -> None:
    strategy = LightningDDPStrategy(static_graph=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        strategy.parallel_devices, strategy.cluster_environment = [torch.device("cpu")], LightningEnvironment()
        with compat.ddp_options(strategy, {"find_unused_parameters": True}):
            model = strategy._setup_model(nn.Linear(1, 1))
            assert model.find_unused_parameters and model.static_graph
        assert not strategy._setup_model(nn.Linear(1, 1)).find_unused_parameters
    finally:
        dist.destroy_process_group()


def test_reducer_whose_hooks_are_gone_when_it_ends() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(1, 1)
        exchanged: list[int] = []

        def exchange(state: Any, bucket: Any) -> Any:
            exchanged.append(bucket.index())
            done: Any = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        exchange.__annotations__ = {}  # strings, which DDP refuses
        model = nn.parallel.DistributedDataParallel(layer)
        model.register_comm_hook(None, exchange)
        model(torch.ones(1, 1)).sum().backward()
        output = model(torch.ones(1, 1)).sum()  # prepared for a backward
        compat.end_reducer(model)
        del model
        before = len(exchanged)
        output.backward()
        assert before == len(exchanged) == 1
    finally:
        dist.destroy_process_group()


def test_backward_passes_have_numbers_and_ends() -> None:
    told: list[Any] = []

    def within(gradient: Tensor) -> None:
        told.append(compat.backward_pass())
        compat.after_backward_pass(lambda: told.append("end"))

    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: told.append("later"))
    y = x * 2
    y.register_hook(within)
    y.sum().backward()
    first, *rest = told
    assert rest == ["later", "end"]
    (x * 2).sum().backward()
    told.clear()
    y = x * 2
    y.register_hook(within)
    y.sum().backward()
    assert told[0] > first >= 0
    assert compat.backward_pass() == -1


def test_only_hooks_of_deepspeed_are_taken_off() -> None:
    def foreign(*args: Any) -> None:
        """A hook of an engine."""

    foreign.__module__ = "deepspeed.runtime.engine"

    def own(*args: Any) -> None:
        """A hook of the user's."""

    module = nn.Linear(2, 2)
    for hook in (foreign, own):
        module.register_forward_hook(hook)
        module.register_forward_pre_hook(hook)
        module.register_full_backward_hook(hook)
        module.register_full_backward_pre_hook(hook)
    compat.remove_hooks_of_engine(module)
    left = [vars(module)[name] for name in compat._HOOKS]
    assert [list(hooks.values()) for hooks in left] == [[own]] * 4


def test_hyperparameters_are_replaced_everywhere() -> None:
    class WithParameters(LightningModule):
        def __init__(self, key: str = "", width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    module = WithParameters("hidden")
    compat.replace_hyperparameters(module, {"key": "***", "width": 3})
    assert dict(module.hparams) == {"key": "***", "width": 3} == dict(module.hparams_initial)
    assert b"hidden" not in cloudpickle.dumps(module)
    assert module.hparams_initial is not module.hparams


def test_profiler_of_torch_is_noticed_while_it_records() -> None:
    assert not compat.is_profiling()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert compat.is_profiling()
    assert not compat.is_profiling()


@pytest.mark.parametrize(
    ("log_model", "save_top_k", "expected"), [("all", 1, True), (True, -1, True), (True, 1, False)]
)
@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_loggers_that_upload_at_once(
    kind: str, log_model: Any, save_top_k: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    logger: Any
    if kind == "mlflow":
        logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", log_model=log_model)
    else:
        logger = WandbLogger(save_dir=tmp_path, log_model=log_model)
    callback = ModelCheckpoint(save_top_k=save_top_k)
    assert compat.uploads_at_once(logger, callback) is expected
    uploaded: list[Any] = []
    monkeypatch.setattr(type(logger), "_scan_and_log_checkpoints", lambda self, callback: uploaded.append(callback))
    logger.after_save_checkpoint(callback)
    assert uploaded == [callback] * expected


@pytest.mark.parametrize("kind", ["same", "mixed types", "sparse", "one"])
def test_norm_of_all_is_that_of_torch(kind: str) -> None:
    tensors = [torch.randn(3, 4), torch.randn(5), torch.randn(())]
    if kind == "mixed types":
        tensors[1] = tensors[1].double()
    elif kind == "sparse":
        tensors[1] = torch.sparse_coo_tensor([[1, 1, 3]], [1.0, 2.0, -4.0], (5,))
    elif kind == "one":
        tensors = tensors[:1]
    dense = torch.cat([t.to_dense().double().flatten() for t in tensors])
    torch.testing.assert_close(compat.total_norm(tensors).double(), dense.norm(), rtol=1e-5, atol=1e-6)


def test_storage_of_a_function_of_ray_tune(local_ray: None, tmp_path: Path) -> None:
    from ray import tune

    from itwinai import compat

    def trial(config: dict[str, Any]) -> None:
        tune.report({"folder": compat.tune_storage()})

    assert compat.tune_storage() is None
    results = tune.Tuner(trial, run_config=tune.RunConfig(storage_path=str(tmp_path), name="a", verbose=0)).fit()
    assert results[0].metrics["folder"] == results[0].path


def test_only_the_cluster_that_has_ended_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:1234")
    compat.forget_ray_cluster("127.0.0.1:4321")
    assert note.exists()
    compat.forget_ray_cluster("127.0.0.1:1234")
    assert not note.exists()
    compat.forget_ray_cluster("127.0.0.1:1234")


def test_exit_functions_run_once(tmp_path: Path) -> None:
    script = (
        "import atexit, sys; from itwinai import compat; atexit.register(print, 'ended'); "
        "compat.run_exit_functions(); print('and then')"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["ended", "and then"]


# ------------------------------------------------------------------------------- what launchers copy and look for


def test_fork_leaves_what_runs_at_exit_to_its_parent(tmp_path: Path) -> None:
    script = (
        "import atexit, weakref; from itwinai import compat; atexit.register(print, 'of the parent'); "
        "held = set(); weakref.finalize(held, print, 'of the parent too'); "
        "compat.forget_exit_functions(); atexit.register(print, 'of the copy')"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["of the copy"]


def test_warnings_that_are_recorded_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        warnings.warn("kept", stacklevel=1)
        compat.print_recorded_warnings()
        warnings.warn("printed", stacklevel=1)
    assert [str(warning.message) for warning in recorded] == ["kept"]
    assert "UserWarning: printed" in capsys.readouterr().err


def test_changed_filters_are_looked_at_again() -> None:
    def warn() -> None:
        warnings.warn("again", stacklevel=1)

    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("default")
        warn()
        warn()
        compat.forget_warned()
        warn()
    assert len(recorded) == 2


def test_settings_of_the_process() -> None:
    before, options = compat.validates_distributions(), compat.print_options()
    try:
        torch.distributions.Distribution.set_default_validate_args(not before)
        assert compat.validates_distributions() is not before
        torch.set_printoptions(precision=2)
        assert compat.print_options()["precision"] == 2
        compat.set_print_options(options)
        assert str(torch.tensor(0.123456)) == "tensor(0.1235)"
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
        compat.set_print_options(options)


def test_state_of_a_metric() -> None:
    from torchmetrics import MeanMetric

    metric = MeanMetric()
    assert not compat.is_updated(metric)
    metric.update(torch.tensor([1.0, 3.0]))
    assert compat.is_updated(metric)
    other = MeanMetric()
    vars(other).update(compat.metric_state(metric))
    assert other.compute() == 2.0 and compat.is_updated(other)
    other.reset()
    assert not compat.is_updated(other)


def test_version_of_a_tensor() -> None:
    tensor = torch.zeros(2)
    before = compat.version_of(tensor)
    tensor.add_(1)
    assert compat.version_of(tensor) != before
    with torch.inference_mode():
        assert compat.version_of(torch.zeros(2)) is None


def test_compiled_modules_are_known() -> None:
    module = nn.Linear(1, 1)
    assert not compat.is_compiled(module) and not compat.is_compiled_in_place(module)
    assert compat.is_compiled(torch.compile(module))
    module.compile()
    assert compat.is_compiled_in_place(module)


def test_hooks_on_parameters() -> None:
    module, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    seen: list[bool] = []
    module.weight.register_hook(lambda gradient: 3 * gradient)
    module.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter is other.weight))
    compat.register_parameter_hooks(other, compat.parameter_hooks(module))
    other(torch.ones(1, 1)).backward()
    assert other.weight.grad is not None and other.weight.grad.item() == 3
    assert seen == [True]
    assert compat.parameter_hooks(nn.Linear(1, 1)) == {}


def test_classes_that_are_sent_by_value_come_back_as_the_same() -> None:
    class Local:
        pass

    assert compat.dynamic_class_id(Local) is None
    compat.register_dynamic_classes([Local])
    number = compat.dynamic_class_id(Local)
    assert number is not None and compat.dynamic_class(number) is Local
    assert pickle.loads(cloudpickle.dumps(Local)) is Local
