"""From a command of itwinai to the script of a job that runs it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itwinai.config.source import CONFIG_FLAGS, check_config_files, expand_short_flags, flags_of, given_by
from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.launchers.slurm_job import MAX_REQUEUES
from itwinai.slurm.options import JobOptions
from itwinai.slurm.plain_yaml import load_plain
from itwinai.slurm.script import JobKind, JobScript
from itwinai.slurm.site import find_site
from itwinai.slurm.site_proposal import propose_site
from itwinai.strategies.registry import uses_ray

COMMANDS = ("fit", "validate", "test", "predict", "tune", "benchmark")
"""Commands of itwinai that a job can run."""

_TRAINING = ("fit", "validate", "test", "predict")


def plan_job(
    command: str,
    arguments: Sequence[str],
    given: Mapping[str, Any],
    *,
    site: str | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
    folder: Path | None = None,
    chain: int = 1,
    checks_nodes: bool = True,
) -> JobScript:
    """Return the script of a job that runs a command of itwinai.

    Args:
        command: one of `COMMANDS`; or ``python``, whose arguments are a script and what it takes.
        arguments: of the command, with ``-c`` and the config.
        given: options of the job, over those of the config's section ``slurm:``.
        site: its name; by default that of the section.
        axes: values by path in the config: the job is an array with a task for each combination.
        folder: for the results of the tasks of an array.
        chain: number of jobs that follow each other, each resuming where the one before was interrupted. They are not
            queued again.
        checks_nodes: whether the nodes are checked before the workers start.

    Raises:
        ConfigurationError: the config, an option or the site is wrong, or they contradict each other.
    """
    if command not in (*COMMANDS, "python"):
        raise ConfigurationError(
            f"A job cannot run `itwinai {command}`.{did_you_mean(command, COMMANDS)} It can run {', '.join(COMMANDS)}."
        )
    paths = [value for flag, value in flags_of(arguments) if flag in CONFIG_FLAGS and value and "://" not in value]
    section, named = _section(paths) if command != "python" else ({}, None)
    beside = Path(paths[-1]).parent if paths else Path()
    found = propose_site() if (site or named) == "auto" else find_site(site or named, beside)
    layers = (("slurm:", section), ("the command line", given))
    options = found.options_for(layers)
    name = f"itwinai-{Path(arguments[0]).stem if command == 'python' and arguments else command}"
    kind = _kind(command, arguments, axes or {})
    if kind == "ray" and options.nodes == 1:
        kind = "single"  # Ray is started by the command
    _check_container(kind, options)
    own = _arguments(command, arguments, options)
    if command == "benchmark" and options.nodes > 1:
        raise ConfigurationError(
            "A benchmark over several nodes is a job for each number of workers: `itwinai benchmark --slurm` submits "
            "them. In one allocation it runs on one node: use --nodes 1."
        )
    variants = _variants(command, axes or {}, arguments, folder or Path(f"{name}-trials"))
    requeues = options.max_requeues
    if chain > 1:
        requeues = 0
    elif requeues is None:
        requeues = MAX_REQUEUES if command == "fit" else 0
    script = JobScript(name, kind, own, options, found, variants, requeues, chain, checks_nodes)
    if chain > 1 and script.is_array:
        raise ConfigurationError("An array cannot be a chain: its tasks end one by one. Use --max-requeues.")
    return script


def _section(paths: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Return the section ``slurm:`` of the config files, and the site that it names."""
    check_config_files([word for path in paths for word in ("-c", path)])
    merged: dict[str, Any] = {}
    for path in paths:
        own = (load_plain(Path(path).read_text(encoding="utf-8")) or {}).get("slurm") or {}
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"{path}: slurm: must be a mapping of options, such as nodes: 2; got {own!r}.")
        merged |= own
    site = merged.pop("site", None)
    return merged, None if site is None else str(site)


def _kind(command: str, arguments: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> JobKind:
    if command in ("tune", "benchmark"):
        return "single"  # which start Ray, or their runs, themselves
    if command == "python":
        return "srun"
    found = given_by(arguments).find("trainer.strategy")
    strategies = axes.get("trainer.strategy") or [None if found is None else found.plain()]
    kinds: set[JobKind] = {"ray" if uses_ray(strategy) else "srun" for strategy in strategies}
    if len(kinds) > 1:
        raise ConfigurationError(
            "An array starts the workers of all its jobs in one way, by srun or by Ray: give the strategies of Ray in "
            "an array of their own."
        )
    return kinds.pop()


def _check_container(kind: JobKind, options: JobOptions) -> None:
    if options.container is not None and options.nodes > 1 and kind != "srun":
        raise ConfigurationError(
            "A Ray cluster over several nodes cannot be started from within a container, where srun is missing. Use "
            "ddp, deepspeed or horovod, one node, or a Python outside of a container (--venv, --conda)."
        )


def _arguments(command: str, arguments: Sequence[str], options: JobOptions) -> list[str]:
    """Return the arguments of Python that run the command in the job."""
    if command == "python":
        return list(arguments)
    words = ["-m", "itwinai.cli.main", command, *arguments]
    if command not in _TRAINING:
        return words
    # A laptop's config says how many devices the laptop has; a flag says what is wanted here.
    expanded = expand_short_flags(arguments)
    asked = {flag: value for flag, value in flags_of(expanded) if flag in ("--trainer.devices", "--trainer.num_nodes")}
    places = {
        "--trainer.devices": (options.workers_per_node, "workers on each node", "--tasks-per-node"),
        "--trainer.num_nodes": (options.nodes, "nodes", "--nodes"),
    }
    for flag, (number, what, own) in places.items():
        value = asked.get(flag)
        if value is None:
            words.append(f"{flag}={number}")
        elif value != "auto" and value != str(number):
            raise ConfigurationError(
                f"{flag} {value} does not fit the job, which has {number} {what} ({own}). Leave it out: it is set from "
                "the job."
            )
    accelerator = given_by(arguments).find("trainer.accelerator")
    if not options.gpus_per_node and accelerator is not None and accelerator.value in ("gpu", "cuda"):
        raise ConfigurationError(
            f"{accelerator.at}: trainer.accelerator is {accelerator.value}, and the job asks for no GPUs. Ask for some "
            "(--gpus-per-node 4), or set --trainer.accelerator=cpu."
        )
    return words


def _variants(
    command: str, axes: Mapping[str, Sequence[Any]], arguments: Sequence[str], folder: Path
) -> list[list[str]]:
    """Return the further arguments of each task of an array."""
    if not axes:
        return []
    if command not in ("fit", "tune"):
        raise ConfigurationError(f"--axis makes an array of trainings; `itwinai {command}` is not one.")
    found = given_by(arguments).find("trainer.default_root_dir")
    base = Path(str(found.plain())) if found is not None and found.value else folder
    flag = "--tune.storage" if command == "tune" else "--trainer.default_root_dir"
    variants = []
    for number, values in enumerate(itertools.product(*axes.values())):
        words = [f"--{path}={_flag_value(value)}" for path, value in zip(axes, values, strict=True)]
        variants.append([*words, f"{flag}={base / f'trial-{number}'}"])
    return variants


def _flag_value(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
