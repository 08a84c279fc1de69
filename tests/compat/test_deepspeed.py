"""What `itwinai.compat.deepspeed` takes for granted about private names."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies import deepspeed as lightning_deepspeed
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import nn

from itwinai.compat import deepspeed as compat_deepspeed
from itwinai.errors import ConfigurationError
from tests.compat.examples import Tiny, make_trainer, numbers

OVERRIDDEN = {
    name for name, value in vars(compat_deepspeed.EngineMaker).items() if name[0] == "_" != name[1] and callable(value)
}


def test_engine_maker_overrides_what_is_known_here() -> None:
    known = {"_setup_model_and_optimizer", "_initialize_deepspeed_inference", "_init_optimizers"}
    assert known | {"_auto_select_batch_size", "_format_batch_size_and_grad_accum_config"} == OVERRIDDEN


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_engine_maker_overrides_methods_of_lightning_by_their_signature(name: str) -> None:
    ours = inspect.signature(getattr(compat_deepspeed.EngineMaker, name)).parameters.values()
    theirs = inspect.signature(getattr(LightningDeepSpeedStrategy, name)).parameters.values()
    assert [(parameter.name, parameter.kind) for parameter in ours] == [
        (parameter.name, parameter.kind) for parameter in theirs
    ]
    assert [p.default is p.empty for p in ours] == [p.default is p.empty for p in theirs]


class FakeEngines(compat_deepspeed.EngineMaker):
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
    compat_deepspeed.remove_hooks_of_engine(parameter)
    left = [getattr(parameter, name) for name in compat_deepspeed._PARAMETER_HOOKS]
    assert [list(hooks.values()) for hooks in left] == [[own]] * 2
    compat_deepspeed.remove_hooks_of_engine(nn.Parameter(torch.ones(2)))  # that never had a hook


@pytest.mark.parametrize("as_output", [lambda loss: loss, lambda loss: {"loss": loss}], ids=["loss", "dictionary"])
def test_manager_of_hooks_is_taken_off_a_loss_and_they_still_run(as_output: Any) -> None:
    from deepspeed.runtime.utils import register_output_backward_hooks

    began: list[str] = []
    loss = nn.Parameter(torch.ones(2)).sum()
    output = as_output(loss)
    register_output_backward_hooks(output, lambda: began.append("backward"))
    assert vars(loss)  # what is to be taken off
    compat_deepspeed.remove_manager_of_engine(output)
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
    assert compat_deepspeed.keep_gradients_whole(can)
    assert can.optimizer._coalesce_grad_reduction and not can.enable_backward_allreduce
    assert compat_deepspeed.keep_gradients_whole(engine(0))
    assert not compat_deepspeed.keep_gradients_whole(engine(1))
    assert not compat_deepspeed.keep_gradients_whole(
        engine(1, _coalesce_grad_reduction=False, use_grad_accum_attribute=True)
    )


def test_scalars_have_a_dimension_while_an_engine_is_made_and_nothing_is_broadcast() -> None:
    scalar, vector = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
    with compat_deepspeed.making_engine([scalar, vector]):
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
    compat_deepspeed.refuse_second_derivatives(module, lambda: noticed.append(True))
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
    compat_deepspeed.tolerate_outputs(module, lambda hook: ("wrapped", hook))
    assert list(module._forward_hooks.values()) == [("wrapped", foreign), own]
    handle.remove()  # DeepSpeed's own handle still takes it off
    assert list(module._forward_hooks.values()) == [own]


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
    compat_deepspeed.remove_hooks_of_engine(module)
    left = [vars(module)[name] for name in compat_deepspeed._HOOKS]
    assert [list(hooks.values()) for hooks in left] == [[own]] * 4


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
