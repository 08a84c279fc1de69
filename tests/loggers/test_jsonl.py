"""A line is whole or not there, is readable by everybody, and stays; one file for all workers."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import lightning as L
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from itwinai.errors import ConfigurationError
from itwinai.io import line_file
from itwinai.loggers import JSONLLogger, jsonl
from itwinai.loggers.jsonl import read_records
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer


def lines_of(logger: JSONLLogger) -> list[Any]:
    """Return the lines of a file as any JSON reader sees them."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    text = Path(logger.log_dir, "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (jsonl, line_file):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_one_object_per_line(clock: Clock, tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path)
    logger.log_metrics({"loss": 0.5, "epoch": 1, "of_torch": torch.tensor(2.5), "of_numpy": numpy.float32(1.5)}, step=7)
    logger.log_metrics({"counts": torch.tensor([1, 2]), "step": 3, "time": 4.5, "flag": True, "text": "a\nb"})
    logger.finalize("success")
    assert lines_of(logger) == [
        {"step": 7, "time": 1000.0, "loss": 0.5, "epoch": 1, "of_torch": 2.5, "of_numpy": 1.5},
        {
            "step": None,
            "time": 1000.0,
            "counts": [1, 2],
            "metric/step": 3,
            "metric/time": 4.5,
            "flag": True,
            "text": "a\nb",
        },
    ]


numbers = st.floats() | st.integers(-(2**70), 2**70)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text().filter(lambda name: name not in ("step", "time")), numbers), max_size=5))
def test_numbers_are_read_as_they_were_logged(records: list[dict[str, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        logger = JSONLLogger(folder)
        for step, record in enumerate(records):
            logger.log_metrics(record, step)
        logger.finalize("success")
        if not records:
            return
        lines_of(logger)  # any reader can
        read = list(read_records(logger.log_dir))
    assert [record.pop("step") for record in read] == list(range(len(records)))
    assert all(isinstance(record.pop("time"), float) for record in read)
    assert repr(read) == repr([dict(record) for record in records])  # nan is not equal to itself


def test_rare_values_are_written_at_once_and_frequent_ones_together(clock: Clock, tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path, flush_every=10, flush_records=5)

    def written() -> int:
        return len(lines_of(logger))

    logger.log_metrics({"a": 1}, 0)
    assert written() == 1
    clock.now += 9
    logger.log_metrics({"a": 1}, 1)
    assert written() == 1
    clock.now += 1
    logger.log_metrics({"a": 1}, 2)
    assert written() == 3
    for step in range(4):
        logger.log_metrics({"a": 1}, step)
    assert written() == 3
    logger.log_metrics({"a": 1}, 9)
    assert written() == 8
    logger.log_metrics({"a": 1}, 9)
    logger.save()
    assert written() == 9
    logger.log_metrics({"a": 1}, 9)
    logger.finalize("failed")
    assert written() == 10


def test_version_that_exists_is_continued(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = JSONLLogger(tmp_path, "runs", version=3)
        logger.log_metrics({"a": step}, step)
        logger.log_hyperparams({f"from_{step}": step})
        logger.finalize("success")
    assert [line["a"] for line in lines_of(logger)] == [1, 2]
    assert logger.log_dir == str(tmp_path / "runs" / "version_3")
    assert json.loads((tmp_path / "runs/version_3/hparams.json").read_text()) == {"from_1": 1, "from_2": 2}


def test_half_a_line_of_a_machine_that_went_down(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "version_0" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"step":1,"a":1}\n{"step":2,"a"')
    assert [record["step"] for record in read_records(path)] == [1]
    logger = JSONLLogger(tmp_path, "runs", version=0)
    with pytest.warns(UserWarning, match="metrics.jsonl was cut off"):
        logger.log_metrics({"a": 2}, 2)
    assert [line["step"] for line in lines_of(logger)] == [1, 2]


KILLED = """
import os, signal, sys
from itwinai.loggers import JSONLLogger
logger = JSONLLogger(sys.argv[1], flush_every=0, flush_records=1)
for step in range(100):
    logger.log_metrics({"a": step}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_what_was_flushed(tmp_path: Path, run_command: RunCommand) -> None:
    assert run_command(python("-c", KILLED, str(tmp_path))).code == -9
    assert [line["a"] for line in lines_of(JSONLLogger(tmp_path, version=0))] == list(range(100))


@pytest.mark.parametrize("name", ["lightning_logs", "", None])
def test_folders_are_those_of_the_csv_logger(name: str | None, tmp_path: Path) -> None:
    root = tmp_path / (name or "")
    for folder in ("version_1", "version_4", "version_x", "other"):
        (root / folder).mkdir(parents=True)
    (root / "version_9").touch()  # a file
    for version in (None, 2, "mine"):
        ours, theirs = (make(tmp_path, name=name, version=version) for make in (JSONLLogger, CSVLogger))
        for attribute in ("name", "version", "save_dir", "root_dir", "log_dir"):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert JSONLLogger(tmp_path, name=name).version == 5


def test_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'s3://bucket' is an address.* Give it a folder"):
        JSONLLogger("s3://bucket")


def test_hyperparameters_without_secrets(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path)
    nested = jsonargparse.Namespace(
        token="abc", path=Path("/data"), rate=math.nan, layers=(1, 2), activation=torch.relu
    )
    logger.log_hyperparams({"model": nested, "url": "https://me:pw@host", "optimizer": torch.optim.SGD})
    logger.log_hyperparams(SimpleNamespace(dtype=torch.float32, seed=numpy.int64(3)).__dict__)
    text = (Path(logger.log_dir) / "hparams.json").read_text()
    assert json.loads(text) == {
        "model": {
            "token": "***",
            "path": "/data",
            "rate": "NaN",
            "layers": [1, 2],
            "activation": f"{torch.relu.__module__}.{torch.relu.__qualname__}",
        },
        "url": "https://me:***@host",
        "optimizer": "torch.optim.sgd.SGD",
        "dtype": "torch.float32",
        "seed": 3,
    }


def test_pickled_in_the_midst_of_a_run(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path, flush_every=3600)
    logger.log_metrics({"a": 1}, 1)
    logger.log_metrics({"a": 2}, 2)  # waits
    copied = pickle.loads(pickle.dumps(logger))
    assert [line["a"] for line in lines_of(logger)] == [1, 2]
    copied.log_metrics({"a": 3}, 3)
    for each in (logger, copied):
        each.finalize("success")
    assert [line["a"] for line in lines_of(logger)] == [1, 2, 3]


class Logged(Regression):
    """Has hyperparameters."""

    def __init__(self, hidden: int = 16, api_key: str = "abc") -> None:
        super().__init__()
        self.save_hyperparameters()


def fit(strategy: str, devices: int, folder: Path, **options: Any) -> tuple[L.Trainer, JSONLLogger]:
    logger = JSONLLogger(folder)
    trainer = make_trainer(strategy, devices, logger=logger, max_epochs=2, log_every_n_steps=1, **options)
    trainer.fit(Logged(), loader(8 // devices), loader(8 // devices))
    return trainer, logger


@pytest.mark.parametrize(("strategy", "devices"), [("auto", 1), ("ddp", 2)])
def test_fit_and_test(strategy: str, devices: int, tmp_path: Path) -> None:
    saving = ModelCheckpoint()
    trainer, logger = fit(strategy, devices, tmp_path, callbacks=[saving], enable_checkpointing=True)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*")] in (
        ["lightning_logs/version_0/metrics.jsonl", "lightning_logs/version_0/hparams.json"],
        ["lightning_logs/version_0/hparams.json", "lightning_logs/version_0/metrics.jsonl"],
    )  # one file, not one of each worker
    assert logger.version == 0
    assert Path(saving.best_model_path).parent == Path(logger.log_dir, "checkpoints")
    lines = lines_of(logger)
    assert [line["val_loss"] for line in lines if "val_loss" in line][-1] == pytest.approx(
        float(trainer.callback_metrics["val_loss"])
    )
    assert [line["step"] for line in lines if "train_loss" in line] == [12, 25]
    assert json.loads(Path(logger.log_dir, "hparams.json").read_text()) == {"hidden": 16, "api_key": "***"}
    if strategy == "auto":  # another launch would show the same
        trainer.test(trainer.lightning_module, loader(8), verbose=False)
        assert [line["step"] for line in lines_of(logger) if "test_loss" in line or "val_error" in line][-1] == 26
