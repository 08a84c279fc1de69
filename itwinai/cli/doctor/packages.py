"""Which packages are installed, in which version, and what they say of themselves."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from itwinai.strategies.registry import INSTALL as STRATEGY_PACKAGES

BASE = ("torch", "lightning", "torchmetrics")
INSTALL = {
    **STRATEGY_PACKAGES,
    "mlflow": "pip install 'itwinai[mlflow]'",
    "wandb": "pip install 'itwinai[wandb]'",
}


def is_installed(package: str) -> bool:
    """Tell whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


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
