"""Keep MLflow from printing and setting what a run does not ask for."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout

from itwinai.run_info.redaction import without_secrets

VARIABLE = "MLFLOW_TRACKING_URI"
"""The environment variable with the address of the server."""


@contextmanager
def clean_output(address: str) -> Iterator[None]:
    """Hide the address's secrets in what MLflow prints: where the run can be seen."""
    if without_secrets(address) == address:
        yield
        return
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        print(without_secrets(printed.getvalue()), end="")


@contextmanager
def quiet(level: int, *names: str) -> Iterator[None]:
    """Leave out what some of MLflow's loggers say below a level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


def quiet_database() -> AbstractContextManager[None]:
    """Leave out what MLflow says about each step of setting up its tables."""
    return quiet(logging.WARNING, "mlflow.store.db.utils")


@contextmanager
def variable_kept() -> Iterator[None]:
    """Keep the variable that MLflow sets: the next logger without an address shall not go where this one goes."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
