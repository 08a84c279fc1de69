"""What itwinai relies on holds for the module and the data, and the config and the command work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from itwinai.cli.main import main
from itwinai.testing import parametrize_with_checks
from itwinai_myplugin import cli
from itwinai_myplugin.datamodule import MyPluginDataModule
from itwinai_myplugin.module import MyPluginModule

CONFIG = Path(__file__).parents[1] / "config.yaml"


def make() -> tuple[MyPluginModule, MyPluginDataModule]:
    return MyPluginModule(hidden=8), MyPluginDataModule(batch_size=8, samples=64)


@parametrize_with_checks(make)
def test_checks(check: Callable[[], None]) -> None:
    check()


def test_config_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(CONFIG), "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]) == 0


def test_command_describes_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--samples", "8"]) == 0
    assert "8 samples" in capsys.readouterr().out
