"""Check that a search can train the module: one trial, from the config or the objects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from itwinai.checks.processes import RunFailedError
from itwinai.checks.ray_runs import fresh
from itwinai.checks.session import Session
from itwinai.checks.subject import ConfiguredObjects, Subject
from itwinai.checks.training import VALIDATION_BATCHES, Run, batches_per_epoch, make_trainer, quiet
from itwinai.checks.verdict import CheckFailedError, NotApplicableError

_PACKAGES = ("ray", "optuna", "rich")
_SETTINGS = {"num_samples": 1, "max_failures": 0, "quiet": True, "name": "trial", "search": "random", "scheduler": None}


def check(session: Session) -> str:
    """Run a search of one trial with one epoch.

    Raises:
        CheckFailedError: the trial fails, or reports no finite metric.
        NotApplicableError: a package is missing, or the module logs nothing that a search could read.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise NotApplicableError(f"{', '.join(missing)} is not installed: pip install 'itwinai[tune]'")
    metrics = session.reference().metrics
    metric = next((key for key in metrics if key.startswith("val")), next(iter(metrics), None))
    if metric is None:
        raise NotApplicableError("the module logs nothing that a search could optimize")
    try:
        value, drawn = session.once(
            "trial",
            "a trial of a search",
            lambda: _search(session.subject, metric, session.folder),
            limit=2 * session.limit,
        )
    except RunFailedError as error:
        raise CheckFailedError(f"a trial of a search fails: {error.summary}", at=error.at) from None
    if value is None or not math.isfinite(value):
        raise CheckFailedError(
            f"a trial reports {value} as '{metric}'", "Log a finite value, on all ranks, at each validation."
        )
    return f"{metric}={value:.4g} with {drawn}"


def _search(subject: Subject, metric: str, folder: Path) -> tuple[float | None, str]:
    from itwinai.tune import Tuner

    settings: dict[str, Any] = {**_SETTINGS, "metric": metric, "storage": str(folder)}
    with quiet():
        if isinstance(subject, ConfiguredObjects):
            settings |= {"report_on": "validation" if metric.startswith("val") else "epoch"}
            result = Tuner(_config(subject), space=_space(subject), **settings).fit()
        else:
            settings |= {"report_on": "epoch"}
            result = Tuner(
                _Fit(fresh(subject), metric, str(folder)), space={"max_epochs": {"choice": [1]}}, **settings
            ).fit()
    return result.best_value, ", ".join(f"{name}={value!r}" for name, value in result.best_parameters.items())


def _space(subject: ConfiguredObjects) -> Mapping[str, Any]:
    """Return the config's space, or one that draws the number of epochs."""
    space: Mapping[str, Any] = subject.tune.get("space") or {"trainer.max_epochs": {"choice": [1]}}
    return space


def _config(subject: ConfiguredObjects) -> dict[str, Any]:
    config = subject.quiet_config
    limits = {"limit_train_batches": batches_per_epoch(subject.options), "limit_val_batches": VALIDATION_BATCHES}
    config["trainer"] = {**config["trainer"], **limits, "max_epochs": 1, "num_sanity_val_steps": 0}
    return config


class _Fit:
    """The training function of a trial."""

    def __init__(self, subject: Subject, metric: str, root: str) -> None:
        self.root = root
        self.subject = subject
        self.metric = metric

    def __call__(self, parameters: dict[str, Any]) -> None:
        """Train for one epoch, and report."""
        from itwinai.callbacks import TuneReportCallback

        built = self.subject.build()
        report = TuneReportCallback(self.metric)
        trainer = make_trainer(
            self.subject, Run(self.root), [*built.callbacks, report], None, max_epochs=parameters["max_epochs"]
        )
        trainer.fit(**built.arguments("fit"))
