"""Loggers by name, and what no logger gets to see."""

from __future__ import annotations

import argparse
from pathlib import Path

import cloudpickle
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.loggers import JSONLLogger, MLFlowLogger, ProvenanceLogger, registry
from itwinai.loggers.hparams_redaction import hide_secrets
from itwinai.loggers.registry import LOGGERS, make_loggers
from tests.support.cases import make_trainer

CLASSES = (CSVLogger, JSONLLogger, TensorBoardLogger, MLFlowLogger, WandbLogger, ProvenanceLogger)


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sets the variable for the whole process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(("name", "kind"), zip(LOGGERS, CLASSES, strict=True))
def test_a_name_stands_for_a_logger(name: str, kind: type[Logger], tmp_path: Path) -> None:
    (logger,) = make_loggers(name, str(tmp_path))
    assert isinstance(logger, kind)
    if kind is MLFlowLogger:
        assert logger.address == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert str(tmp_path) in str(logger.save_dir)


def test_several_names_stand_for_several_loggers_in_folders_of_their_own(tmp_path: Path) -> None:
    csv, jsonl = make_loggers(" csv, JSONL,csv", str(tmp_path))
    assert csv.log_dir == str(tmp_path / "lightning_logs" / "csv" / "version_0")
    assert str(jsonl.log_dir) == str(tmp_path / "lightning_logs" / "jsonl" / "version_0")


@pytest.mark.parametrize("given", ["csv,jsonl", ["csv", "jsonl"], ("csv", "jsonl")])
def test_trainer_takes_names(given: object, tmp_path: Path) -> None:
    trainer = make_trainer("auto", 1, logger=given, default_root_dir=tmp_path)
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger, JSONLLogger]
    assert trainer.loggers[0].save_dir == str(tmp_path)


def test_unknown_names_are_errors_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"no logger 'mlfow'\. Did you mean 'mlflow'\? The names are csv, "):
        ItwinaiTrainer(logger="csv,mlfow")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, install: str, needed_for: str) -> None:
        raise MissingPackageError(f"{needed_for}: {install}")

    monkeypatch.setattr(registry, "require", missing)
    with pytest.raises(
        MissingPackageError, match=r"The logger 'wandb': Install it with `pip install 'itwinai\[wandb\]'`"
    ):
        make_loggers("wandb", ".")


@pytest.mark.parametrize("params", [{"api_key": "s3cret", "lr": 0.1}, argparse.Namespace(api_key="s3cret", lr=0.1)])
def test_secrets_among_hyperparameters_reach_no_logger(params: object, tmp_path: Path) -> None:
    given = CSVLogger(tmp_path)
    trainer = make_trainer("auto", 1, logger=[given])
    (logger,) = trainer.loggers
    for one in (logger, cloudpickle.loads(cloudpickle.dumps(logger))):
        one.log_hyperparams(params)
        one.log_metrics({"a": 1.0}, 0)
        one.save()
        kept = yaml.safe_load((Path(one.log_dir) / "hparams.yaml").read_text())
        assert kept == {"api_key": "***", "lr": 0.1}


def test_guarding_twice_is_guarding_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    hide_secrets(logger)
    hide_secrets(logger)
    logger.log_hyperparams({"token": "abc", "width": 3})
    assert logger.experiment.hparams == {"token": "***", "width": 3}
