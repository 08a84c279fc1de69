"""MLflow."""

from __future__ import annotations

import inspect
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from itwinai.checkpoints import portable_file
from itwinai.checkpoints.naming import EXTENSION
from itwinai.checkpoints.state import checkpoint_of, describe
from itwinai.errors import LoggerError
from itwinai.loggers.adapters.base import RankedAdapter
from itwinai.loggers.adapters.files import within
from itwinai.loggers.mlflow import MLFlowLogger
from itwinai.loggers.mlflow_client import AwayError, check_answers, is_server, quiet, where_to_look
from itwinai.run_info.redaction import without_secrets
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

    from itwinai.run_info.run import RunFacts


CHECKPOINT = f"module{EXTENSION}"
"""Name of the checkpoint in the folder of a model."""


class MLflowAdapter(RankedAdapter):
    """Facts as tags, files and figures as artifacts, the module as an MLflow model; nested runs for single workers."""

    takes: ClassVar[frozenset[str]] = frozenset({"file", "figure", "model", "rank_metrics"})

    @property
    def _client(self) -> Any:
        return self.logger.experiment  # type: ignore[attr-defined]

    @property
    def _address(self) -> str:
        return getattr(self.logger, "address", None) or str(self._client.tracking_uri)

    @property
    def _run(self) -> str:
        run: str = self.logger.run_id  # type: ignore[attr-defined]
        return run

    @override
    def facts(self, trainer: Trainer, facts: RunFacts) -> None:
        from mlflow.entities import RunTag

        tags = {name.replace("/", "."): str(value) for name, value in facts.flat().items()}
        if facts.code is not None:
            tags["mlflow.source.git.commit"] = facts.code.commit  # where MLflow's own pages look for it
        self._client.log_batch(self._run, tags=[RunTag(name, value) for name, value in tags.items()])

    @override
    def file(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    @override
    def hand_over(self, files: Sequence[Path], base: Path, patience: float) -> None:
        server = f"MLflow at {without_secrets(self._address)}"
        if is_server(self._address):
            try:
                check_answers(self._address, tries=1)
            except AwayError:
                raise LoggerError(f"{server} does not answer") from None
        # If the server goes away during the upload, MLflow retries for minutes.
        within(patience, partial(_upload, self._client, self._run, files, base), server)

    @override
    def figure(self, name: str, figure: Figure, step: int) -> None:
        self._client.log_figure(self._run, figure, f"figures/{name}/step-{step}.png")

    @override
    def model(self, module: LightningModule, example: Any) -> None:
        import mlflow.pytorch
        import torch
        from mlflow.models import infer_signature

        signature = None
        if example is not None:
            training = module.training
            module.eval()
            with torch.no_grad():
                output = module(example)
            module.train(training)
            signature = infer_signature(_as_arrays(example), _as_arrays(output))
        with tempfile.TemporaryDirectory() as folder:
            # MLflow's log_model would need the run to be this process's active one, which belongs to the user.
            # What every user of this knows: a module is pickled, torch has a local version.
            with quiet(logging.ERROR, "mlflow.pytorch", "mlflow.utils.requirements_utils"):
                mlflow.pytorch.save_model(module, f"{folder}/model", signature=signature, **_pickled())
            _add_checkpoint(module, Path(folder, "model", CHECKPOINT))
            self._client.log_artifacts(self._run, f"{folder}/model", "model")

    @override
    def rank_logger(self, rank: int) -> Logger:
        run = self._client.create_run(
            self.logger.experiment_id,  # type: ignore[attr-defined]
            run_name=f"rank {rank}",
            tags={"mlflow.parentRunId": self._run, "rank": str(rank)},
        )
        return MLFlowLogger(run_id=run.info.run_id, tracking_uri=self._address, save_dir=self.logger.save_dir)

    @override
    def place(self) -> str:
        experiment: str = self.logger.experiment_id  # type: ignore[attr-defined]
        return where_to_look(self._address, experiment, self._run)


def _upload(client: Any, run: str, files: Sequence[Path], base: Path) -> None:
    for path in files:
        place = path.parent.relative_to(base).as_posix()
        client.log_artifact(run, str(path), None if place == "." else place)


def _add_checkpoint(module: LightningModule, path: Path) -> None:
    """Write a checkpoint of a module's weights, which loads without executing code, unlike the pickled module."""
    try:
        content = checkpoint_of(module)
        portable_file.write(content, path, describe(content), written_at=time.time())
    except Exception as error:  # hooks of the user, who may expect a trainer
        warn_user(
            f"The MLflow model has no checkpoint, so that Predictor.load accepts it with weights_only=False only: "
            f"{type(error).__name__}: {error}"
        )


def _pickled() -> dict[str, str]:
    """Return the argument by which MLflow pickles a module: by default it traces it, which few modules bear."""
    import mlflow.pytorch

    known = "serialization_format" in inspect.signature(mlflow.pytorch.save_model).parameters
    return {"serialization_format": "pickle"} if known else {}


def _as_arrays(value: Any) -> Any:
    """Return tensors as what MLflow reads signatures from."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _as_arrays(value[0]) if len(value) == 1 else {str(i): _as_arrays(v) for i, v in enumerate(value)}
    return value
