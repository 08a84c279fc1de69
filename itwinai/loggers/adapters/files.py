"""Hand the files of a run over to the loggers that keep files elsewhere; the run does not wait for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.errors import LoggerError
from itwinai.run_info.redaction import without_secrets
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PATIENCE = 60.0
"""Seconds that each logger has for the files of a run that has ended."""


def hand_over(loggers: Iterable[Logger], files: Sequence[Path], base: Path, patience: float = PATIENCE) -> None:
    """Give files of a run to all its loggers; warn about a logger that fails.

    Args:
        loggers: of the run.
        files: that are there.
        base: the folder that paths in a logger are relative to.
        patience: most seconds for each logger.
    """
    from itwinai.loggers.adapters import adapter_of

    if not files:
        return
    for logger in loggers:
        try:
            adapter_of(logger).hand_over(files, base, patience)
        except Exception as error:  # of any logger: the run itself is over, and the files are on this machine
            what = str(files[0]) if len(files) == 1 else f"{len(files)} files of {base}"
            reason = without_secrets(str(error)).rstrip(".")
            warn_user(f"{type(logger).__name__} did not upload {what}: {reason}. The local copy is kept.")


def within(seconds: float, call: Callable[[], None], destination: str) -> None:
    """Call a function in a thread, and wait for it at most this many seconds.

    Raises:
        LoggerError: it has not ended by then; it continues until the process ends.
        Exception: what the call has raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # for the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="itwinai-hand-over", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise LoggerError(f"{destination} did not finish the upload within {seconds:g} s")
    if raised:
        raise raised[0]
