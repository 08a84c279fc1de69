"""Values in a config by their path."""

from __future__ import annotations

import pytest

from itwinai.config.paths import spelled_out, value_at, with_values
from itwinai.errors import ConfigurationError

CONFIG = {
    "trainer": {
        "max_epochs": 3,
        "callbacks": [{"class_path": "Stopping", "init_args": {"patience": 2}}],
        "strategy": "ddp",
        "plugins": None,
    },
    "model": {
        "class_path": "Net",
        "init_args": {"lr": 0.1, "inner": {"class_path": "Block", "init_args": {"width": 4}}},
    },
    "data": {"class_path": "Data"},
}


@pytest.mark.parametrize(
    ("given", "whole", "value"),
    [
        ("model.init_args.lr", "model.init_args.lr", 0.1),
        ("model.lr", "model.init_args.lr", 0.1),
        ("model.inner.width", "model.init_args.inner.init_args.width", 4),
        ("model.class_path", "model.class_path", "Net"),
        ("trainer.callbacks.0.patience", "trainer.callbacks.0.init_args.patience", 2),
        ("trainer.strategy", "trainer.strategy", "ddp"),
    ],
)
def test_what_may_be_left_out_is_spelled_out(given: str, whole: str, value: object) -> None:
    assert spelled_out(CONFIG, given) == whole
    assert value_at(CONFIG, whole) == value


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("model.init_args.lrr", "model.init_args.lr"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("patience", "trainer.callbacks.0.init_args.patience"),
        ("trainer.callbacks.1.patience", "trainer.callbacks.0.init_args.patience"),
    ],
)
def test_a_path_to_nothing_is_an_error_with_the_nearest(path: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        spelled_out(CONFIG, path)
    assert f"'{path}'" in str(error.value)
    assert f"Did you mean '{nearest}'?" in str(error.value)


def test_values_are_set_in_a_copy() -> None:
    values = {
        "model.init_args.inner.init_args.width": 8,
        "model.init_args.inner": {"class_path": "Other", "init_args": {"depth": 2}},
        "trainer.callbacks.0.init_args.patience": 5,
        "data.init_args.batch_size": 16,
        "trainer.plugins": ["a"],
    }
    changed = with_values(CONFIG, values)
    # The whole section first, and then what is in it.
    assert changed["model"]["init_args"]["inner"] == {"class_path": "Other", "init_args": {"depth": 2, "width": 8}}
    assert changed["trainer"]["callbacks"][0]["init_args"] == {"patience": 5}
    assert changed["data"] == {"class_path": "Data", "init_args": {"batch_size": 16}}
    assert CONFIG["trainer"]["callbacks"][0]["init_args"] == {"patience": 2}
    assert "init_args" not in CONFIG["data"]
