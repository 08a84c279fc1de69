"""Give each trial's loggers the trial's own place: one experiment, in it one run per trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError
from itwinai.loggers.registry import logger_kind
from itwinai.run_info.redaction import without_secrets
from itwinai.run_info.serialization import plain
from itwinai.tune.logger_config import Entry, entries_of
from itwinai.tune.mlflow_runs import PARENT, SEARCH_ID, TRIAL, location_of, trial_run


@dataclass(frozen=True)
class TrialContext:
    """A trial, as its loggers need to know it.

    Attributes:
        search: name of the search.
        search_id: tells searches of the same name apart, see `itwinai.tune.mlflow_runs.search_id`.
        search_folder: the folder of the search.
        trial: name of the trial, which never changes.
        folder: of the trial.
        parameters: what the trial runs with, by path in the config.
        parent_run_id: run of the whole search, in MLflow.
        tracking_uri: address of MLflow that has the parent run.
        next_step: the step that this start of the trial will log first, if it resumes from a checkpoint.
    """

    search: str
    search_id: str
    search_folder: Path
    trial: str = ""
    folder: Path = Path()
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)  # with secrets, maybe
    parent_run_id: str | None = None
    tracking_uri: str = field(default="", repr=False)  # with a login, maybe
    next_step: int | None = None


def logger_entries(given: Any, run: TrialContext) -> Any:
    """Return the loggers of a config as one trial has them: in a common experiment, with a place of its own.

    A trial that is started again continues where it was: in its runs of MLflow and W&B, in the files of its folder.
    Only Lightning's CSVLogger, which would delete its earlier file, begins another one.

    Call this once per start of a trial, in the process that starts its workers: it opens the trial's run in MLflow, so
    that its parameters are there, and nothing else.

    Args:
        given: what the config has at ``trainer.logger``. It is not changed.
        run: the trial.

    Returns:
        What takes its place: no names any more, but classes with their arguments. Those that the user gave are kept,
        but what is one place for all trials gets the trial's name. Classes that are not known here stay as they are.

    Raises:
        ConfigurationError: there is no logger of a name, or one is told to let all trials write into one run.
        MissingPackageError: the package of a logger is not installed.
        LoggerError: no MLflow server answers at the address, or it does not do what is asked.
    """
    if given is False:
        return False
    filled = [_filled(one, run) if isinstance(one, Entry) else one for one in entries_of(given)]
    is_list = isinstance(given, (str, list, tuple))
    return filled if is_list or len(filled) != 1 else filled[0]


@dataclass(frozen=True)
class TrialLoggers:
    """Gives the trials of a search their loggers.

    Attributes:
        given: what the config has at ``trainer.logger``.
        search: what the trials have in common; the rest is filled in for each.
    """

    given: Any
    search: TrialContext

    def __call__(self, parameters: Mapping[str, Any], name: str, folder: str, resume_path: str | None = None) -> Any:
        """Return what a trial has at ``trainer.logger``."""
        from itwinai.checkpoints.sharded import manifest_of

        manifest = None if resume_path is None else manifest_of(resume_path)
        next_step = None if manifest is None else manifest.about.get("global_step")
        run = replace(self.search, trial=name, folder=Path(folder), parameters=parameters, next_step=next_step)
        return logger_entries(self.given, run)


def _filled(entry: Entry, run: TrialContext) -> dict[str, Any]:
    if entry.is_named:
        logger_kind(entry.kind).check_installed()
    # A logger that a plugin names has arguments as lightning's CSVLogger has.
    fill = _FILLERS.get(entry.kind, _below_folder if entry.is_named else None)
    return entry.as_config() if fill is None else entry.with_arguments(**fill(entry, run)).as_config()


def _csv(entry: Entry, run: TrialContext) -> dict[str, Any]:
    place = _below_folder(entry, run)
    if "version" in entry.arguments:  # where it is fixed, Lightning deletes what an earlier start has written
        place["name"] = "/".join(filter(None, [place.get("name"), str(entry.arguments["version"])]))
    return {**place, "version": None}


def _continued(entry: Entry, run: TrialContext) -> dict[str, Any]:
    """Return arguments for a logger that continues in a version that exists."""
    return {**_below_folder(entry, run), "version": entry.arguments.get("version", 0)}


def _tensorboard(entry: Entry, run: TrialContext) -> dict[str, Any]:
    # TensorBoard leaves out what an earlier start has logged from this step on.
    repeated = {} if run.next_step is None else {"purge_step": run.next_step}
    return {**_continued(entry, run), **repeated}


def _below_folder(entry: Entry, run: TrialContext) -> dict[str, Any]:
    given = entry.arguments
    if "save_dir" not in given:
        return {"save_dir": str(run.folder), "name": given.get("name", entry.kind)}
    if not Path(given["save_dir"]).is_absolute():
        return {"save_dir": str(run.folder / given["save_dir"])}
    return {"name": "/".join(filter(None, [given.get("name"), run.search, run.trial]))}


def _mlflow(entry: Entry, run: TrialContext) -> dict[str, Any]:
    _refuse(entry, "run_id")
    given = entry.arguments
    place = location_of(entry, run.search, run.search_folder, run.tracking_uri)
    tags = {**(given.get("tags") or {}), "itwinai.search": run.search, SEARCH_ID: run.search_id, TRIAL: run.trial}
    if run.parent_run_id is not None and place.address == run.tracking_uri:
        tags[PARENT] = run.parent_run_id
    name = _joined(given.get("run_name"), run)
    return {
        "experiment_name": place.experiment,
        "run_name": name,
        "tracking_uri": place.address,
        "save_dir": given.get("save_dir", str(run.folder)),
        "tags": tags,
        "run_id": trial_run(place, name, tags, run.parameters),
    }


def _wandb(entry: Entry, run: TrialContext) -> dict[str, Any]:
    _refuse(entry, "id", "version")
    given = entry.arguments
    filled = {
        "group": given.get("group", run.search),
        "name": _joined(given.get("name"), run),
        "id": hashlib.sha256(f"{run.search_id}/{run.trial}".encode()).hexdigest()[:16],
        "resume": given.get("resume", "allow"),
        "allow_val_change": True,  # parameters, in population based training
    }
    if "save_dir" not in given and "dir" not in given:
        run.folder.mkdir(parents=True, exist_ok=True)  # into one that is not there W&B does not write
        filled["save_dir"] = str(run.folder)
    if isinstance(config := given.get("config", {}), Mapping):
        filled["config"] = {**config, "parameters": _nested(without_secrets(plain(run.parameters)))}
    return filled


def _joined(given: str | None, run: TrialContext) -> str:
    return f"{given} {run.trial}" if given else run.trial


def _refuse(entry: Entry, *names: str) -> None:
    for name in names:
        if name in entry.arguments:
            raise ConfigurationError(
                f"{entry.class_path} is given {name}={entry.arguments[name]!r}, and all trials would write into that "
                "one run. Leave it out: each trial gets a run of its own, and continues in it when it is started again."
            )


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as the config has them: W&B wants no dots in names."""
    nested: dict[str, Any] = {}
    for path, value in parameters.items():
        *sections, name = path.split(".")
        section = nested
        for part in sections:
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):  # a value, and another one below it
                inner = section[part] = {"": inner}
            section = inner
        section[name] = value
    return nested


_FILLERS: dict[str, Callable[[Entry, TrialContext], dict[str, Any]]] = {
    "csv": _csv,
    "jsonl": _continued,
    "provenance": _continued,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
