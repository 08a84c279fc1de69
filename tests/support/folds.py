"""Several fits in one process with every logger, and what is found afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

from itwinai.loggers import JSONLLogger, MLFlowLogger, ProvenanceLogger
from itwinai.loggers.jsonl import read_records
from tests.support import wandb_files


def make_loggers(folder: Path) -> list[Logger]:
    """Return one logger of each class that keeps its files on this machine."""
    return [
        CSVLogger(folder, "csv"),
        JSONLLogger(folder, "jsonl"),
        TensorBoardLogger(folder, "tensorboard"),
        ProvenanceLogger(folder, "provenance"),
        MLFlowLogger("ours", tracking_uri=f"sqlite:///{folder}/ours.db", save_dir=str(folder)),
        LightningMLFlowLogger("stock", tracking_uri=f"sqlite:///{folder}/stock.db"),
        WandbLogger(save_dir=folder, project="folds"),
    ]


def ask(loggers: list[Logger]) -> None:
    """Use the loggers on the caller after a fit."""
    for logger in loggers:
        assert logger.version is not None
        assert logger.name is not None
        logger.log_metrics({"after": 1.0}, step=100)
        logger.save()


def run_folds(folder: Path, fit: Callable[[list[Logger]], Any], fresh: bool) -> dict[str, Any]:
    """Fit twice; return what the loggers have kept.

    Args:
        folder: where they keep it.
        fit: trains with the loggers that it is given.
        fresh: make loggers anew for the second fit.
    """
    folder.mkdir()
    with _offline():
        import wandb

        loggers = make_loggers(folder)
        for fold in range(2):
            if fold and fresh:
                for logger in loggers:
                    logger.finalize("success")
                wandb.finish()
                loggers = make_loggers(folder)
            fit(loggers)
            ask(loggers)
        for logger in loggers:
            logger.finalize("success")
        wandb.finish()
    return found(folder)


@contextmanager
def _offline() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("WANDB_MODE", "WANDB_SILENT", "MLFLOW_TRACKING_URI")}
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def found(folder: Path) -> dict[str, Any]:
    """Return the values that are found below a folder, by logger and run, without what is of the time or drawn."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    boards = {}
    for path in sorted(folder.glob("tensorboard/*")):
        board = EventAccumulator(str(path)).Reload()
        boards[path.name] = {
            tag: sorted({(point.step, round(point.value, 5)) for point in board.Scalars(tag)})
            for tag in board.Tags()["scalars"]
        }
    runs = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime)
    return {
        "csv": {path.parent.name: path.read_text().split() for path in sorted(folder.glob("csv/*/metrics.csv"))},
        "jsonl": {
            path.parent.name: [
                {key: value for key, value in row.items() if key != "time"} for row in read_records(path)
            ]
            for path in sorted(folder.glob("jsonl/*/metrics.jsonl"))
        },
        "provenance": sorted(path.parent.name for path in folder.glob("provenance/*/provenance.json")),
        "tensorboard": boards,
        "mlflow": {name: _mlflow(f"sqlite:///{folder}/{name}.db", name) for name in ("ours", "stock")},
        "wandb": [
            [{key: value for key, value in row.items() if key[0] != "_"} for row in wandb_files.read(path).history]
            for path in runs
        ],
    }


def _mlflow(address: str, experiment: str) -> list[dict[str, list[tuple[int, float]]]]:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    runs = client.search_runs([known.experiment_id], order_by=["attributes.start_time ASC"])
    return [
        {
            name: sorted(
                (point.step, round(point.value, 5)) for point in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        }
        for run in runs
    ]
