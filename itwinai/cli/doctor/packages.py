"""Look at installed packages and the machine, in child processes, because an import may hang or crash."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from itwinai.cli.doctor.child_process import DOCTOR, Child, summarize, write_record
from itwinai.cli.doctor.machine import inspect_host, inspect_launcher
from itwinai.cli.doctor.progress import ProgressLine
from itwinai.strategies.registry import INSTALL as STRATEGY_PACKAGES

BASE = ("torch", "lightning", "torchmetrics")
INSTALL = {
    **STRATEGY_PACKAGES,
    "mlflow": "pip install 'itwinai[mlflow]'",
    "wandb": "pip install 'itwinai[wandb]'",
}


def is_installed(package: str) -> bool:
    """Return whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def inspect(timeout: float, folder: Path, progress: ProgressLine) -> dict[str, Any]:
    """Return what only becomes known by importing packages.

    Args:
        timeout: seconds.
        folder: for files of children.
        progress: shows what is being done.

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


def inspect_import(package: str) -> dict[str, Any]:
    """Import a package, to see whether that works; there is nothing else to say of it."""
    import_module(package)
    return {}


def inspect_torch() -> dict[str, Any]:
    """Ask torch what it was built for, and which GPUs it sees."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
    }


def inspect_horovod() -> dict[str, Any]:
    """Ask Horovod what was built into it."""
    import horovod.torch as hvd

    built = [name for name in ("mpi", "gloo", "nccl", "ccl", "ddl") if getattr(hvd, f"{name}_built")()]
    return {"controllers": [name for name in built if name in ("mpi", "gloo")], "operations": built}


def describe_installed(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return version and details of every package, or its install line; ``error`` says that it cannot be imported.

    Args:
        facts: what `inspect` returned.
    """
    installed: dict[str, dict[str, Any]] = {"python": {"version": platform.python_version()}}
    for name in (*BASE, *INSTALL):
        if not is_installed(name):
            installed[name] = {"version": None, "install": INSTALL.get(name, f"pip install {name}")}
            if name in BASE:
                installed[name]["error"] = "not installed"
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:  # a package without metadata, as on a PYTHONPATH
            version = "of unknown version"
        installed[name] = {"version": version, **facts.get(name, {})}
    return installed
