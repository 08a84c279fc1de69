"""The facts of a run that every logger should have."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from itwinai.run_info.git import Code, code_in, folder_of_run
from itwinai.run_info.redaction import without_secrets

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from itwinai.run_info.launch_info import Launch

PACKAGES = (
    "itwinai",
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "deepspeed",
    "horovod",
    "ray",
    "mlflow",
    "wandb",
)


@dataclass(frozen=True)
class RunFacts:
    """What a run is, beside its configuration. Without secrets.

    Attributes:
        code: the git repository of the user's script; None without one.
        versions: of Python and of the packages that matter, by name.
        launch: where it runs.
        precision: of the computation, as Lightning names it.
        accumulate_grad_batches: batches per optimizer step.
        seed: that of ``seed_everything``; None if it was not called.
        command: the command line.
        started: time of the start, ISO 8601 with the time zone.
    """

    code: Code | None
    versions: dict[str, str]
    launch: Launch
    precision: str
    accumulate_grad_batches: int
    seed: int | None
    command: str
    started: str

    def flat(self) -> dict[str, str | int | bool]:
        """Return the facts by names such as ``code/commit``, those that are known."""
        return {name: value for name, value in _flattened(asdict(self)) if value is not None and value != ""}


def collect_facts(trainer: Trainer) -> RunFacts:
    """Return the facts of a run; the trainer has to be set up. Asks no other worker."""
    from itwinai.run_info.launch_info import launch_of

    seed = os.environ.get("PL_GLOBAL_SEED")
    return RunFacts(
        code=code_in(folder_of_run()),
        versions=versions(),
        launch=launch_of(trainer),
        precision=str(trainer.precision),
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        seed=int(seed) if seed is not None and seed.isdigit() else None,
        command=command_line(),
        started=time_now(),
    )


_FROM_WHERE = ("--ckpt", "--ckpt_path", "--trainer.resume")


def command_line() -> str:
    """Return the command line of this process, without secrets."""
    return shlex.join(without_secrets(sys.argv))


def resume_command(checkpoint: str) -> str:
    """Return this process's `itwinai fit ...` so that it resumes from a checkpoint; empty if it is a script.

    Args:
        checkpoint: path of the checkpoint.
    """
    program, *words = without_secrets(sys.argv)
    if not words or words[0] != "fit" or not program.endswith(("/itwinai", "itwinai/cli/main.py")):
        return ""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] in _FROM_WHERE:
            kept.pop()  # with its value
        elif word.partition("=")[0] not in _FROM_WHERE or word in _FROM_WHERE:
            kept.append(word)
    return shlex.join(["itwinai", *kept, "--ckpt_path", checkpoint])


def time_now() -> str:
    """Return the time as ISO 8601, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def facts_of(trainer: Trainer) -> RunFacts:
    """Return the facts that a callback of the run keeps as its ``facts``, or else collect them, which asks git."""
    from itwinai.compat import lightning_trainer

    for callback in lightning_trainer.callbacks(trainer):
        facts = getattr(callback, "facts", None)
        if isinstance(facts, RunFacts):
            return facts
    return collect_facts(trainer)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _flattened(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, dict):
            flat += _flattened(item, f"{prefix}{name}/")
        else:
            flat.append((f"{prefix}{name}", item))
    return flat
