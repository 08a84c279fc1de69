"""The config file that a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from itwinai.cli.save_config import SaveConfig
from tests.callbacks.test_run_logging import Keeper
from tests.support.cases import Regression, loader, make_trainer


def test_it_is_in_the_folder_of_the_run_also_for_a_logger_without_one(tmp_path: Path) -> None:
    """As that of an MLflow server, for which lightning's own ends with an AssertionError."""
    parser = LightningArgumentParser()
    parser.add_argument("--token", type=str)
    save = SaveConfig(parser, Namespace(token="secret"), config_filename="resolved-config.yaml")
    trainer = make_trainer("auto", 1, logger=Keeper(), callbacks=[save], max_steps=1, default_root_dir=tmp_path)
    assert trainer.log_dir is None
    trainer.fit(Regression(), loader(8))
    (saved,) = tmp_path.rglob("resolved-config.yaml")
    assert saved.parent == tmp_path / "keeper" / "0"
    assert yaml.safe_load(saved.read_text()) == {"token": "***"}
