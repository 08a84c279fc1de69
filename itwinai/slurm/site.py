"""What a machine needs of each job, as data: one YAML file for each site."""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from itwinai.errors import ConfigurationError, PluginError, did_you_mean
from itwinai.plugins import SITES, find_plugins
from itwinai.slurm.options import KEYS, SBATCH_OPTIONS, JobOptions
from itwinai.slurm.plain_yaml import load_plain
from itwinai.slurm.times import seconds_of

_LIMITS = ("max_time", "gpus_per_node", "cpus_per_node", "max_nodes")


@dataclass(frozen=True)
class Partition:
    """Limits of a partition that differ from those of its site.

    Attributes:
        max_time: longest time of a job, as SLURM writes it.
        gpus_per_node: GPUs of each node.
        cpus_per_node: cores of each node.
        max_nodes: most nodes of a job.
    """

    max_time: str | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    max_nodes: int | None = None


@dataclass(frozen=True)
class Site:
    """What a machine needs of each job.

    Attributes:
        name: after ``--site``.
        description: one line.
        path: of its file; empty if it has none.
        options: for each job, as in the section ``slurm:`` of a config.
        max_time: longest time of a job, as SLURM writes it.
        max_nodes: most nodes of a job.
        gpus_per_node: GPUs of each node.
        cpus_per_node: cores of each node.
        gpu_vendor: whose GPUs they are, for the container.
        gpu_option: how GPUs are requested.
        gpu_type: the type in that request, as in ``a100``.
        scratch: folder that all nodes share, below which jobs have their folders. ``~`` and variables such as
            ``$SCRATCH`` are replaced.
        address_suffix: what the name of a node's fast network has after the name of the node.
        partitions: those whose limits differ, by name.
    """

    name: str
    description: str = ""
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    max_time: str | None = None
    max_nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    gpu_vendor: Literal["nvidia", "amd"] = "nvidia"
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None
    scratch: str | None = None
    address_suffix: str = ""
    partitions: Mapping[str, Partition] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Site:
        """Return the site of a file.

        Raises:
            ConfigurationError: the file is not YAML, or has unknown keys or values of another kind.
        """
        try:
            plain = load_plain(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{path} cannot be read as a site: {error}") from None
        return cls.from_mapping(path.stem, plain, str(path))

    @classmethod
    def from_mapping(cls, name: str, plain: Any, path: str = "") -> Site:
        """Return the site that plain values describe.

        Raises:
            ConfigurationError: there are unknown keys or values of another kind.
        """
        where = path or f"site {name}"
        if not isinstance(plain, Mapping):
            raise ConfigurationError(f"{where}: a site must be a mapping of keys; got {plain!r}.")
        own = {one.name for one in dataclasses.fields(cls)} - {"name", "path", "options"}
        options: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for key, value in plain.items():
            plain_key = str(key).replace("-", "_")
            if plain_key in own:
                values[plain_key] = value
            elif plain_key in KEYS or str(key).replace("_", "-") in SBATCH_OPTIONS:
                options[str(key)] = value
            else:
                known = sorted({*own, *KEYS, *SBATCH_OPTIONS})
                raise ConfigurationError(
                    f"{where}: a site has no key '{key}'.{did_you_mean(key, known)} Keys are {', '.join(known)}; other "
                    "options of sbatch go under sbatch."
                )
        values = {key: _checked(where, key, value) for key, value in values.items() if value is not None}
        if "scratch" in values:
            values["scratch"] = _expanded(where, values["scratch"])
        JobOptions.from_mappings((where, options))
        return cls(name=name, path=path, options=options, **values)

    def limits(self, partition: str | None) -> Partition:
        """Return the limits of a partition."""
        own = self.partitions.get(partition or "", Partition())
        values = {name: getattr(own, name) for name in _LIMITS}
        return Partition(**{name: getattr(self, name) if value is None else value for name, value in values.items()})

    def options_for(self, layers: tuple[tuple[str, Mapping[str, Any]], ...]) -> JobOptions:
        """Return the options of a job on this site.

        Args:
            layers: as for `JobOptions.from_mappings`, over those of the site.

        Raises:
            ConfigurationError: the site does not have what is asked for.
        """
        options = JobOptions.from_mappings((self.path or f"site {self.name}", self.options), *layers)
        partition = options.sbatch.get("partition")
        limits = self.limits(partition)
        where = f"The site {self.name}" + (f", partition {partition}," if partition in self.partitions else "")
        gpus = options.gpus_per_node
        if gpus is None:
            gpus = limits.gpus_per_node or 0
        if limits.gpus_per_node is not None and gpus > limits.gpus_per_node:
            raise ConfigurationError(
                f"{where} has {limits.gpus_per_node} GPUs on each node; --gpus-per-node {gpus} asks for more. "
                "Use fewer, and more --nodes."
            )
        if limits.max_nodes is not None and options.nodes > limits.max_nodes:
            raise ConfigurationError(f"{where} allows {limits.max_nodes} nodes; --nodes {options.nodes} is more.")
        time = options.sbatch.get("time")
        if time is not None and limits.max_time is not None and seconds_of(time) > seconds_of(limits.max_time):
            raise ConfigurationError(
                f"{where} allows jobs of {limits.max_time}; --time {time} is longer. Take a shorter time: a "
                "run of fit resumes in further jobs."
            )
        options = dataclasses.replace(options, gpus_per_node=gpus)
        workers, cpus = options.workers_per_node, options.cpus_per_task
        if limits.cpus_per_node is not None:
            cpus = max(limits.cpus_per_node // workers, 1) if cpus is None else cpus
            if cpus * workers > limits.cpus_per_node:
                raise ConfigurationError(
                    f"{where} has {limits.cpus_per_node} cores on each node, and {workers} workers with {cpus} cores "
                    f"each need {workers * cpus}. Use fewer --cpus-per-task or --tasks-per-node."
                )
        return dataclasses.replace(options, cpus_per_task=cpus)

    def text(self) -> str:
        """Return the file that describes this site."""
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        partitions = {
            name: {key: value for key, value in dataclasses.asdict(one).items() if value is not None}
            for name, one in self.partitions.items()
        }
        plain = {
            name: value
            for name, value in own.items()
            if name not in ("name", "path", "options", "partitions") and value != defaults[name]
        }
        plain |= dict(self.options)
        if partitions:
            plain["partitions"] = partitions
        return yaml.safe_dump(plain, sort_keys=False, width=100)


NO_SITE = Site("none", "nothing but what SLURM does by itself")


def find_site(name: str | None, beside: Path | None = None) -> Site:
    """Return a site by its name.

    Args:
        name: of the site; a path of a file; None for no site.
        beside: the folder of the config.

    Raises:
        ConfigurationError: there is no such site; the message names the nearest.
    """
    if name is None or name == NO_SITE.name:
        return NO_SITE
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigurationError(f"There is no file {name} of a site.")
        return Site.read(Path(name))
    found = site_files(beside)
    if name not in found:
        raise ConfigurationError(
            f"There is no site '{name}'.{did_you_mean(name, [*found, 'auto'])} Sites are {', '.join(found)}; "
            f"write one of your own to {user_folder() / (name + '.yaml')}, or beside the config. "
            "`itwinai slurm sites` lists them, and --site auto proposes one."
        )
    return Site.read(found[name])


def site_files(beside: Path | None = None) -> dict[str, Path]:
    """Return the files of all sites, by name: those beside the config win over yours, plugins', the package's.

    Args:
        beside: the folder of the config, whose folder ``sites`` is looked through.
    """
    folders = [Path(str(files("itwinai.slurm") / "sites")), *_of_plugins(), user_folder()]
    if beside is not None:
        folders.append(beside / "sites")
    found = {path.stem: path for folder in folders for path in sorted(folder.glob("*.y*ml"))}
    return dict(sorted(found.items()))


def user_folder() -> Path:
    """Return the folder of your own sites."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "itwinai" / "sites"


def _of_plugins() -> list[Path]:
    """Return the folders of sites that other packages have."""
    folders = []
    for plugin in find_plugins(SITES):
        try:
            folders.append(Path(str(files(plugin.load()))))
        except PluginError as error:  # other sites do not need it
            from itwinai.warn import warn_user  # which imports lightning

            warn_user(str(error))
    return folders


def _checked(where: str, key: str, value: Any) -> Any:
    if key == "partitions":
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where}: partitions must be a mapping of names to limits; got {value!r}.")
        return {str(name): _partition(f"{where}: partition {name}", limits) for name, limits in value.items()}
    if key in ("gpus_per_node", "cpus_per_node", "max_nodes"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigurationError(f"{where}: {key} must be a whole number; got {value!r}.")
        return value
    choices = {"gpu_vendor": ("nvidia", "amd"), "gpu_option": ("gpus-per-node", "gres")}.get(key)
    if choices and value not in choices:
        raise ConfigurationError(f"{where}: {key} must be {' or '.join(choices)}; got {value!r}.")
    if key == "address_suffix" and not re.fullmatch(r"[A-Za-z0-9.-]*", str(value)):
        raise ConfigurationError(f"{where}: address_suffix must be a part of a host name, such as -ib; got {value!r}.")
    text = str(value)
    if key == "max_time":
        try:
            seconds_of(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: max_time: {error}") from None
    return text


def _partition(where: str, limits: Any) -> Partition:
    plain = {str(key).replace("-", "_"): value for key, value in (limits or {}).items()}
    for key in plain:
        if key not in _LIMITS:
            raise ConfigurationError(
                f"{where} has no limit '{key}'.{did_you_mean(key, _LIMITS)} Limits are {', '.join(_LIMITS)}."
            )
    return Partition(**{key: _checked(where, key, value) for key, value in plain.items() if value is not None})


def _expanded(where: str, path: str) -> str:
    expanded = os.path.expandvars(os.path.expanduser(path.replace("$USER", getpass.getuser())))
    if missing := re.search(r"\$\{?(\w+)", expanded):
        raise ConfigurationError(
            f"{where}: scratch: the environment variable {missing[1]} is not set here. Set it, or write the "
            "folder itself."
        )
    return expanded
