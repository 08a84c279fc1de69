"""Strategies by their names: what the registry says of each is true of what it makes; Ray is around any of them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError
from itwinai.strategies import DDPStrategy, DeepSpeedStrategy, HorovodStrategy, RayStrategy
from itwinai.strategies.registry import STRATEGY_NAMES, find_entry, make_strategy, uses_ray
from tests.conftest import RunCommand, python


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_entry_tells_the_truth_of_what_it_makes(name: str) -> None:
    entry = find_entry(name)
    strategy: Any = make_strategy(name)
    assert entry is not None and entry.name == name
    assert isinstance(strategy, Strategy)
    assert getattr(strategy, "stage", 0) == entry.zero_stage
    assert isinstance(strategy, RayStrategy) == entry.uses_ray == uses_ray(name) == uses_ray(strategy)
    for package, cls in (("deepspeed", DeepSpeedStrategy), ("horovod", HorovodStrategy), ("ray", RayStrategy)):
        assert isinstance(strategy, cls) == (package in entry.packages)


def test_classes_of_a_config_are_known() -> None:
    assert uses_ray({"class_path": "itwinai.strategies.ray.RayStrategy", "init_args": {"strategy": "ddp"}})
    assert not uses_ray({"class_path": "itwinai.strategies.DDPStrategy"})
    assert (
        find_entry({"class_path": "mine.Strategy"}) is find_entry("fsdp") is find_entry(SingleDeviceStrategy()) is None
    )


def test_registry_imports_no_framework(run_command: RunCommand) -> None:
    """The command line asks it before it has imported anything."""
    code = "import sys; import itwinai.strategies.registry; print([n for n in ('torch', 'ray') if n in sys.modules])"
    assert run_command(python("-c", code)).output.strip() == "[]"


def test_ray_is_a_strategy_of_the_kind_inside() -> None:
    inner = DeepSpeedStrategy(stage=3, whole_gradients=True)
    strategy = RayStrategy(inner, placement="SPREAD", resources_per_worker={"CPU": 2})
    assert isinstance(strategy, DeepSpeedStrategy)
    assert (strategy.stage, strategy.whole_gradients, strategy.strategy_name) == (3, True, "ray_deepspeed")
    assert inner.worker_source is not strategy.worker_source  # the one that was given can be used without Ray
    for same in (pickle.loads(pickle.dumps(strategy)), copy.copy(strategy), copy.deepcopy(strategy)):
        assert type(same) is type(strategy)
        assert same.placement == strategy.placement and same.stage == 3


def test_trainer_has_the_strategy_that_it_was_given() -> None:
    strategy = RayStrategy("ddp", min_workers=1)
    trainer = ItwinaiTrainer(strategy=strategy, accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert trainer.strategy is strategy
    assert isinstance(strategy, DDPStrategy)


@pytest.mark.parametrize("inside", ["ray", "fsdp", RayStrategy("ddp"), SingleDeviceStrategy()])
def test_ray_is_around_strategies_of_itwinai_only(inside: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be one of itwinai's"):
        RayStrategy(inside)


def test_workers_that_share_a_gpu_use_gloo() -> None:
    shared = RayStrategy("ddp", resources_per_worker={"GPU": 0.5})
    assert isinstance(shared, DDPStrategy) and shared.backend == "gloo"
