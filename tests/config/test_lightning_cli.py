"""Configs that are only parsed."""

from __future__ import annotations

from pathlib import Path

import pytest

from itwinai.config.lightning_cli import ParsedCLI, different, parsed
from itwinai.config.paths import spelled_out, with_values
from itwinai.errors import ConfigurationError

CONFIG = {
    "trainer": {"max_epochs": 2, "enable_progress_bar": None},
    "model": {"class_path": "tests.support.tuned.Regression"},
    "data": {"class_path": "tests.support.tuned.Points"},
}


@pytest.fixture(scope="module")
def cli() -> ParsedCLI:
    return parsed(CONFIG)


def test_what_is_none_by_default_is_there_and_can_be_varied(cli: ParsedCLI) -> None:
    config = cli.as_dict()
    assert config["trainer"]["gradient_clip_val"] is None
    assert spelled_out(config, "trainer.gradient_clip_val") == "trainer.gradient_clip_val"
    cli.check(with_values(config, {"trainer.gradient_clip_val": 0.5, "trainer.precision": "bf16-mixed"}), "it is wrong")
    with pytest.raises(ConfigurationError, match="it is wrong, which does not fit there"):
        cli.check(with_values(config, {"trainer.precision": 33}), "it is wrong")


def test_without_defaults_there_is_what_was_set(cli: ParsedCLI) -> None:
    config = cli.as_dict(without_defaults=True)
    assert config["trainer"] == {"max_epochs": 2}
    assert set(config) == {"seed_everything", "trainer", "model", "data"}


def test_a_file_that_is_not_there_is_told_with_the_one_that_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigurationError, match=r"no config file .*config\.yml\. Did you mean '.*config\.yaml'\?"):
        parsed(["-c", str(tmp_path / "config.yml")])


def test_what_differs_from_defaults_keeps_its_place() -> None:
    defaults = {"trainer": {"max_epochs": None, "devices": 1, "logger": None}, "model": None, "seed_everything": True}
    model = {"class_path": "a.Model", "init_args": {"lr": 0.1}}
    config = {"trainer": {"max_epochs": 2, "devices": 1, "logger": None}, "model": model, "seed_everything": True}
    assert different(config, defaults) == {"trainer": {"max_epochs": 2}, "model": model}
