"""Write where the results of a run come from, as a document of W3C PROV."""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from itwinai.errors import require
from itwinai.io.atomic import write_whole
from itwinai.loggers.folder_logger import FolderLogger
from itwinai.loggers.prov_document import document_of, run_id_of
from itwinai.loggers.prov_records import (
    RUNNING,
    Attempt,
    SavedCheckpoint,
    data_of,
    resumed_from,
    wait_for_checkpoints,
)
from itwinai.run_info.serialization import plain_hyperparameters
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from itwinai.run_info.run import RunFacts

FILE = "provenance.json"


class ProvenanceLogger(FolderLogger):
    """Write ``provenance.json``: what a run used and what it generated, as PROV-JSON.

    It used the data, the hyperparameters, the code (its git commit), the versions of packages, and the checkpoint that
    it resumed from; it generated checkpoints and the last value of each metric. The agents are itwinai, and the person
    and organisation that you name. The whole file is written at the start, at each checkpoint and at the end; after a
    killed run it has the status "running".

    Args:
        save_dir: the folder that holds all runs; by default the working folder.
        name: name of the folder below it; None or empty for none.
        version: number or name of the run. An existing version is continued: its document gets one more attempt. By
            default one more than the highest existing number.
        agent: the responsible person: an address like ``https://orcid.org/0000-0002-1825-0097``, or a name.
        organisation: the responsible organisation: an address like ``https://ror.org/05a28rw58``, or a name.

    Raises:
        ConfigurationError: ``save_dir`` is an address and not a folder.
        MissingPackageError: the package ``prov`` is not installed.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        name: str | None = "provenance",
        version: int | str | None = None,
        *,
        agent: str = "",
        organisation: str = "",
    ) -> None:
        require("prov", "Install it with `pip install 'itwinai[watch]'`.", "The logger 'provenance'")
        super().__init__("." if save_dir is None else save_dir, name, version)
        self.agent = agent
        self.organisation = organisation
        self._run_id = ""
        self._earlier = ""
        self._attempts: list[Attempt] = []
        self._trainer: weakref.ref[Trainer] | None = None

    @property
    def path(self) -> Path:
        """The document."""
        return Path(self.log_dir, FILE)

    @rank_zero_only
    def describe(self, trainer: Trainer, facts: RunFacts) -> None:
        """Begin a fit; called on rank 0 when everything is set up.

        Args:
            trainer: its trainer.
            facts: where it runs, with which code and versions.
        """
        if self._attempts and self._attempts[-1].facts is not None:  # the logger has seen another fit
            self._attempts[-1].close_again()
            self._attempts.append(Attempt(began=time.time()))
        attempt = self._attempt()
        attempt.facts = facts
        self._trainer = weakref.ref(trainer)
        self._look_for_start(attempt, trainer)
        self._write()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add hyperparameters to the configuration of the run.

        Args:
            params: a mapping or a namespace.
            *args: not used, as with Lightning's loggers.
            **kwargs: not used.
        """
        self._attempt().hyperparameters |= plain_hyperparameters(params)
        self._write()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the last value of each metric, for the next time that the document is written.

        Args:
            metrics: numbers, or tensors with one element.
            step: the step they belong to.
        """
        attempt, now = self._attempt(), time.time()
        for name, value in metrics.items():
            if name != "epoch":
                attempt.add_value(name, float(value), step, now)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Note the checkpoints that a callback keeps; they may still be written when this is called."""
        attempt = self._attempt()
        roles = dict.fromkeys(checkpoint_callback.best_k_models, "")
        roles |= {checkpoint_callback.last_model_path: "last", checkpoint_callback.best_model_path: "best"}
        attempt.add_checkpoints(checkpoint_callback.state_key, roles)
        self._look(attempt)
        self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the document at the end of a fit, or of an evaluation.

        Args:
            status: how it has ended.
        """
        attempt = self._attempts[-1] if self._attempts else None
        # In the process that has only launched the workers there is nothing to end, or it has ended already.
        if attempt is None or attempt.status != RUNNING:
            return
        if (trainer := self._living_trainer()) is not None:
            wait_for_checkpoints(trainer)
        self._look(attempt)
        attempt.drop_removed_checkpoints()
        attempt.status, attempt.ended = status, time.time()
        self._write()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None}

    def _attempt(self) -> Attempt:
        """Return the attempt that is in progress; begin the first one, or continue with the last one."""
        if not self._attempts:
            if self.path.exists():
                self._earlier = self.path.read_text(encoding="utf-8")
            self._run_id = run_id_of(self._earlier, self.path) if self._earlier else str(uuid.uuid4())
            self._attempts.append(Attempt(began=time.time()))
            self._write()
        attempt = self._attempts[-1]
        if attempt.status != RUNNING:  # an evaluation after the fit, or the next fit
            attempt.reopen()
            self._write()
        return attempt

    def _look(self, attempt: Attempt) -> None:
        """Take what can be told by now: checkpoints are written in a thread, and the trainer knows its loaders late."""
        attempt.look_up_checkpoints()
        if (trainer := self._living_trainer()) is not None:
            attempt.data = attempt.data or data_of(trainer)
            self._look_for_start(attempt, trainer)

    def _living_trainer(self) -> Trainer | None:
        return None if self._trainer is None else self._trainer()

    def _look_for_start(self, attempt: Attempt, trainer: Trainer) -> None:
        if attempt.resumed_from is None and (path := resumed_from(trainer)):
            attempt.resumed_from = SavedCheckpoint(path).looked_up()

    def _write(self) -> None:
        document = document_of(
            self._run_id,
            self._attempts,
            earlier=self._earlier,
            agent=self.agent,
            organisation=self.organisation,
            software=installed_version("itwinai"),
        )
        try:
            write_whole(self.path, str(document.serialize(indent=1)) + "\n")
        except OSError as error:
            if not self.path.exists():  # the run has only begun, and can be put right at once
                raise
            warn_user(f"{self.path} could not be written and is out of date: {error}. The run continues.")
