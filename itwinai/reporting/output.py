"""Print what callbacks report of a run: the run summary prints all of it, or each callback its own part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itwinai.compat import lightning_trainer
from itwinai.interfaces import Reporting, SummaryReporter
from itwinai.reporting.sections import Section
from itwinai.reporting.terminal import in_terminal

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def sections_of_all(trainer: Trainer) -> list[Section]:
    """Return what all callbacks of a run report, in their order."""
    reporting = [callback for callback in lightning_trainer.callbacks(trainer) if isinstance(callback, Reporting)]
    return [section for callback in reporting for section in callback.report()]


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Return whether a run only tries out the code, with ``fast_dev_run``: it leaves no reports."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def print_report(trainer: Trainer, title: str, callback: Reporting) -> None:
    """Print what a callback reports, on rank 0, unless the run summary prints it, or the run only tries out the code.

    Args:
        trainer: the trainer.
        title: printed above it.
        callback: the callback.
    """
    if is_fast_dev_run(trainer) or not trainer.is_global_zero:
        return
    if not any(isinstance(other, SummaryReporter) for other in lightning_trainer.callbacks(trainer)):
        print(in_terminal(title, callback.report()), flush=True)
