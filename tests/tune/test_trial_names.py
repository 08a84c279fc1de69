"""What trials are called."""

from __future__ import annotations

from typing import Any

import pytest

from itwinai.tune.trial_names import LONGEST, trial_name

LR, CHANNELS = "model.init_args.lr", "model.init_args.channels"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "007"),
        ({LR: 0.00123456, CHANNELS: 16}, "007_lr=0.001235_channels=16"),
        ({LR: 1e-5}, "007_lr=1e-5"),
        ({LR: 12345678.0}, "007_lr=1.235e7"),
        ({LR: -0.5, CHANNELS: 1234567}, "007_lr=-0.5_channels=1234567"),
        ({"model.bias": True, "model.norm": None}, "007_bias=true_norm=null"),
        ({"model.layers": [64, 32], "trainer.precision": "bf16-mixed"}, "007_layers=64-32_precision=bf16-mixed"),
        # the shortest end that no other path has, without what a config needs and people do not
        (
            {"model.init_args.optimizer.init_args.lr": 0.1, "model.init_args.scheduler.init_args.lr": 0.2},
            "007_optimizer.lr=0.1_scheduler.lr=0.2",
        ),
        ({"model.init_args.optimizer.class_path": "torch.optim.AdamW"}, "007_optimizer=AdamW"),
        ({"model.init_args.optimizer": {"class_path": "torch.optim.SGD"}}, "007_optimizer=SGD"),
        ({"model.init_args.lr": 1, "model.lr": 2}, "007_init_args.lr=1_model.lr=2"),
        # nothing that a file system or a shell takes for something else
        ({"data.path": "../a b/*?[x]:ü|\n"}, "007_path=..-a-b-x"),
        ({"data.name": ""}, "007_name=empty"),
        ({"model.api_key": "abc", LR: 0.1}, "007_lr=0.1"),
    ],
)
def test_trial_is_named_by_its_parameters(parameters: dict[str, Any], name: str) -> None:
    assert trial_name(7, parameters) == name


def test_long_names_are_cut_where_a_parameter_ends() -> None:
    name = trial_name(1234, {f"model.width_{number}": "x" * 50 for number in range(20)})
    assert name == f"1234_width_0={'x' * 24}_width_1={'x' * 24}_+18"
    assert len(name) <= LONGEST
    longest = trial_name(7, {"model." + "a" * 300: "b" * 300, LR: 0.1})
    assert longest == f"007_{'a' * 32}={'b' * 24}_lr=0.1"


def test_parameter_is_called_the_same_in_trials_that_have_others() -> None:
    paths = ["model.adam.lr", "model.sgd.lr"]
    assert trial_name(0, {"model.sgd.lr": 0.1}, among=paths) == "000_sgd.lr=0.1"
