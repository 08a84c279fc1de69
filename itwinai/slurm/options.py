"""What a job asks for: from the site, from the section `slurm:` of a config, from flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from itwinai.errors import ConfigurationError, did_you_mean

SBATCH_OPTIONS = (
    "partition",
    "account",
    "qos",
    "time",
    "mem",
    "constraint",
    "reservation",
    "nodelist",
    "exclude",
    "array",
    "dependency",
    "begin",
    "mail-user",
    "mail-type",
    "job-name",
    "comment",
    "signal",
    "requeue",
)
"""sbatch's options that have a flag, and a key in the section, of their own. Others are given under ``sbatch``."""

# Options of sbatch that are made from others, and what to use in their place.
_MADE = {
    "nodes": "nodes",
    "N": "nodes",
    "ntasks": "tasks_per_node",
    "n": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "c": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "output": "job_folder",
    "o": "job_folder",
    "error": "job_folder",
    "e": "job_folder",
    "open-mode": "job_folder",
}
_NOT_OF_JOBS = ("parsable", "wait", "W", "wrap", "test-only", "help", "h", "usage", "version", "V", "quiet", "Q")
_SHORT = {"p": "partition", "A": "account", "q": "qos", "t": "time", "a": "array", "d": "dependency", "J": "job-name"}
_PYTHONS = ("python", "venv", "conda", "container")


@dataclass(frozen=True)
class JobOptions:
    """What a job asks for.

    Attributes:
        nodes: how many.
        gpus_per_node: GPUs of each node; None for all that the site's nodes have, 0 for a job without GPUs.
        tasks_per_node: workers on each node; None for one for each GPU, and one without GPUs.
        cpus_per_task: cores of each worker; None for a node's share where the site says how many a node has.
        max_requeues: how often the job is queued again when it was interrupted; None for 10 times if the command
            resumes by itself, which `fit` does, and never if not.
        modules: environment modules to load.
        venv: folder of a virtual environment to activate.
        conda: name or folder of a conda environment to activate.
        python: the interpreter; by default that which has made the script, or ``python`` of one of the other three.
        container: image of Apptainer in which workers run.
        bind: folders that the container sees, as Apptainer's ``--bind`` takes them. Home and the current folder are
            there anyway.
        environment: environment variables, by name. Their values are literal.
        setup: lines of bash that run before the workers start, as they are.
        sbatch: further options of sbatch, by name without dashes; None as the value of one that takes none.
    """

    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    max_requeues: int | None = None
    modules: Sequence[str] = ()
    venv: str | None = None
    conda: str | None = None
    python: str | None = None
    container: str | None = None
    bind: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    sbatch: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def from_mappings(cls, *layers: tuple[str, Mapping[str, Any]]) -> JobOptions:
        """Return the options of several layers, the later ones over the earlier.

        Args:
            *layers: each with what it is called in errors. Keys are those of this class, and of `SBATCH_OPTIONS`;
                ``_`` and ``-`` are the same. Mappings are merged key by key; a layer that names a Python (``python``,
                ``venv``, ``conda``, ``container``) replaces that of earlier ones.

        Raises:
            ConfigurationError: a key is unknown, or a value is of another kind.
        """
        merged: dict[str, Any] = {"sbatch": {}, "environment": {}}
        for where, layer in layers:
            values = _checked(where, layer)
            if any(values.get(name) for name in _PYTHONS):
                for name in _PYTHONS:
                    merged.pop(name, None)
            for name in ("sbatch", "environment"):
                merged[name] = {**merged[name], **values.pop(name, {})}
            merged |= values
        merged["sbatch"] = {name: value for name, value in merged["sbatch"].items() if value is not False}
        return cls(**merged)

    @property
    def workers_per_node(self) -> int:
        """Workers on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1


KEYS = tuple(entry.name for entry in dataclasses.fields(JobOptions))


def _checked(where: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a layer by the names of `JobOptions`."""
    if not isinstance(layer, Mapping):
        raise ConfigurationError(f"{where} must be a mapping of options, such as nodes: 2; got {layer!r}.")
    values: dict[str, Any] = {}
    sbatch: dict[str, Any] = {}
    for key, value in layer.items():
        name, option = str(key).replace("-", "_"), str(key).replace("_", "-")
        if name == "name":
            name, option = "job_name", "job-name"
        if option in SBATCH_OPTIONS:
            if value is not None:
                sbatch[option] = _option(where, option, value)
        elif name in KEYS:
            if value is not None:
                values[name] = _value(where, name, value)
        else:
            raise ConfigurationError(
                f"{where}: there is no option '{key}'.{did_you_mean(key, [*KEYS, *SBATCH_OPTIONS])} Options are "
                f"{', '.join([*KEYS, *SBATCH_OPTIONS])}; give any other option of sbatch under sbatch."
            )
    values["sbatch"] = {**sbatch, **values.get("sbatch", {})}
    return values


def _value(where: str, name: str, value: Any) -> Any:
    if name in ("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "max_requeues"):
        least = 0 if name in ("gpus_per_node", "max_requeues") else 1
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if number < least:
            raise ConfigurationError(f"{where}: {name} must be a whole number of at least {least}; got {value!r}.")
        return number
    if name in ("modules", "setup", "bind"):
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence) or not all(isinstance(one, (str, int)) for one in listed):
            raise ConfigurationError(f"{where}: {name} must be a list of texts; got {value!r}.")
        return tuple(str(one) for one in listed)
    if name in ("environment", "sbatch"):
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where}: {name} must be a mapping of names to values; got {value!r}.")
        if name == "sbatch":
            return {_sbatch_name(where, str(one)): _option(where, str(one), given) for one, given in value.items()}
        for one in value:
            if not str(one).replace("_", "a").isalnum() or str(one)[:1].isdigit() or not str(one).isascii():
                raise ConfigurationError(f"{where}: {one!r} is not a name of an environment variable.")
        return {str(one): _text(given) for one, given in value.items()}
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}: {name} must be a text; got {value!r}.")
    return value


def _option(where: str, name: str, value: Any) -> str | None | bool:
    """Return the value of an option of sbatch: None for one without a value, False for one to leave out."""
    if value is None or value is True or value == "":
        return None
    if value is False:
        return False
    if isinstance(value, (list, tuple)):
        return ",".join(str(one) for one in value)
    if not isinstance(value, (str, int, float)):
        raise ConfigurationError(f"{where}: the value of {name} must be a text or a number; got {value!r}.")
    return str(value)


def _sbatch_name(where: str, name: str) -> str:
    plain = name.lstrip("-").replace("_", "-")
    plain = _SHORT.get(plain, plain)
    if plain in _MADE:
        meant = _MADE[plain]
        raise ConfigurationError(
            f"{where}: sbatch's option {plain} is set from {meant}: use that in a file, or --{meant.replace('_', '-')}."
        )
    if plain in _NOT_OF_JOBS:
        raise ConfigurationError(f"{where}: sbatch's option {plain} is one of the command, not of a job. Leave it out.")
    if not plain or not plain.replace("-", "a").isalnum() or not plain.isascii():
        raise ConfigurationError(f"{where}: {name!r} is not a name of an option of sbatch. Write NAME=VALUE.")
    return plain


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)
