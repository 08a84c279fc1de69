"""Keep MLflow from printing and setting what a run does not ask for."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from itwinai.facts.secrets import without_secrets

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
def quiet_database() -> Iterator[None]:
    """Leave out what MLflow says about each step of setting up its tables."""
    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


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
