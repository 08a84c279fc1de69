"""Looking at packages and the machine in child processes, because an import may hang or crash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from itwinai.cli.doctor.child_process import DOCTOR, Child, summarize, write_record
from itwinai.cli.doctor.machine import inspect_host, inspect_launcher
from itwinai.cli.doctor.packages import inspect_horovod, inspect_import, inspect_torch, is_installed
from itwinai.cli.doctor.progress import ProgressLine


def inspect(timeout: float, folder: Path, progress: ProgressLine) -> dict[str, Any]:
    """Return what only becomes known by importing packages.

    Args:
        timeout: seconds.
        folder: for files of children.
        progress: is told what goes on.

    Returns:
        Facts by the names that `inspect_here` gives them. What could not be imported is ``{"error": why}``.
    """
    # The packages behind strategies are imported by their trials; Horovod has to be asked what was built into it.
    parts = ["machine", *(name for name in ("horovod", "mlflow", "wandb") if is_installed(name))]
    progress.start("looking at what is installed")
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        children = {part: stack.enter_context(Child([*DOCTOR, "--inspect", part], folder)) for part in parts}
        for part, process in children.items():
            outcome = process.outcome(timeout, progress.tick)
            facts |= outcome.record
            unfinished = next((step for step in inspections(part) if step not in facts), None)
            if outcome.problem and unfinished is not None:
                facts[unfinished] = {"error": f"import {unfinished}: {outcome.problem}"}
    return facts


def inspect_here(part: str, out: Path) -> None:
    """Import something in this process and write down what it says of itself.

    Args:
        part: ``machine``, or an optional package.
        out: the file for the facts; it is written after each step, in case the next one never ends.
    """
    facts: dict[str, Any] = {}
    for name, step in inspections(part).items():
        try:
            facts[name] = step()
        except Exception as error:  # imports run anybody's code, and what is wrong with it is what is asked here
            facts[name] = {"error": summarize(error)}
        write_record(out, facts)


def inspections(part: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what one child looks at, in this order."""
    if part == "machine":
        return {
            "host": inspect_host,
            "torch": inspect_torch,
            "lightning": lambda: inspect_import("lightning"),
            "launcher": inspect_launcher,
        }
    return {part: inspect_horovod if part == "horovod" else lambda: inspect_import(part)}
