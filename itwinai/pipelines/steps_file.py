"""The file of a pipeline: its steps, with the place of each value for errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itwinai.config.source import Given, as_given, read_config, scalar, yaml_files
from itwinai.errors import ConfigurationError, did_you_mean, did_you_mean_file
from itwinai.pipelines.graph import Graph
from itwinai.pipelines.references import references_in

COMMANDS = {
    "fit": "itwinai.pipelines.commands.Fit",
    "validate": "itwinai.pipelines.commands.Validate",
    "test": "itwinai.pipelines.commands.Test",
    "predict": "itwinai.pipelines.commands.Predict",
    "tune": "itwinai.pipelines.commands.Tune",
    "benchmark": "itwinai.pipelines.commands.Benchmark",
}
"""Built-in steps: the key that says which, and the class."""

_TOP = ("steps", "folder", "slurm")
_OF_STEPS = ("after", "inputs", "packages", "alone", "slurm")
_ALONE = ("tune", "benchmark")  # which use the whole machine


@dataclass(frozen=True)
class Step:
    """A step as the file says it.

    Attributes:
        name: of the step.
        at: where it stands.
        class_path: of the function or class.
        arguments: of it, by name; they may hold references.
        after: names of steps that end before it, beside those that it refers to.
        inputs: files and folders that it reads, beside its arguments.
        packages: distributions whose versions count, beside those that its code imports.
        alone: whether nothing else runs while it runs.
        slurm: options of its job.
        command: the built-in step that it is; empty for others.
    """

    name: str
    at: str
    class_path: Given
    arguments: Given
    after: Sequence[str] = ()
    inputs: Sequence[str] = ()
    packages: Sequence[str] = ()
    alone: bool = False
    slurm: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def place_of(self, argument: str) -> str:
        """Return where an argument is given, and its path, to stand before an error.

        Args:
            argument: path of it, as far as it is given; the nearest section that is given counts.
        """
        node, names = self.arguments, []
        for name in argument.split("."):
            if not isinstance(node.value, dict) or name not in node.value:
                break
            node = node.value[name]
            names.append(name)
        path = ".".join(["steps", self.name, *argument.split(".")])
        at = (node.at if names else "") or self.at
        return f"{at}: {path}" if at and not at.startswith("--") else at or path


@dataclass(frozen=True)
class StepsFile:
    """A whole pipeline as its file says it.

    Attributes:
        name: of the pipeline: that of the file.
        path: of the file; None for values that were given in Python.
        steps: by name.
        folder: for outputs, as the file says it; None if it does not.
        slurm: options of the jobs of all steps.
        graph: which step needs which.
        plain: everything, as plain values.
        overrides: values by path that were set over those of the file.
    """

    name: str
    path: Path | None
    steps: Mapping[str, Step]
    folder: str | None
    slurm: Mapping[str, Any]
    graph: Graph
    plain: Mapping[str, Any]
    overrides: Mapping[str, Any]


def read_steps(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> StepsFile:
    """Read the file of a pipeline.

    Args:
        source: path of the file; or its values.
        overrides: values by path, such as ``{"steps.train.max_epochs": 3}``. ``init_args`` and, for built-in steps,
            ``overrides`` may be left out of a path.

    Raises:
        ConfigurationError: the file is missing or malformed, or steps refer to steps that do not exist, or in a circle.
    """
    path = None if isinstance(source, Mapping) else Path(source)
    root = as_given(source) if isinstance(source, Mapping) else _read(str(source))
    top = root.value
    for key, one in top.items():
        if key not in _TOP:
            raise ConfigurationError(
                f"{_at(one)}a pipeline has no key '{key}'.{did_you_mean(key, _TOP)} It has {', '.join(_TOP)}."
            )
    if "steps" not in top or not isinstance(top["steps"].value, dict) or not top["steps"].value:
        raise ConfigurationError(
            f"{_at(top.get('steps', root))}a pipeline needs 'steps:', a mapping from names to steps, such as "
            "steps: {prepare: {class_path: steps.prepare}}."
        )
    for where, value in (overrides or {}).items():
        _override(top, where, value)
    steps = {name: _step(name, one) for name, one in top["steps"].value.items()}
    folder = top["folder"].value if "folder" in top else None
    if folder is not None and not isinstance(folder, str):
        raise ConfigurationError(f"{_at(top['folder'])}folder must be the path of a folder; got {folder!r}.")
    slurm = _mapping(top["slurm"], "slurm") if "slurm" in top else {}
    graph = Graph.of({name: _needs_of(step) for name, step in steps.items()})
    return StepsFile(
        path.stem if path else "pipeline", path, steps, folder, slurm, graph, root.plain(), overrides or {}
    )


def _read(path: str) -> Given:
    file = Path(path)
    if file.is_file() and not file.read_text(encoding="utf-8", errors="replace").strip():
        raise ConfigurationError(f"{path} is empty. A pipeline has 'steps:', a mapping from names to steps.")
    if not file.exists() and "\n" not in path:
        found = yaml_files(file.parent, pipelines=True)
        there = f" Pipelines here: {', '.join(found[:5])}." if found else ""
        raise ConfigurationError(f"There is no pipeline {path}.{did_you_mean_file(path, found) or there}")
    return read_config(path)


def _step(name: str, given: Given) -> Step:
    where = f"{_at(given)}steps.{name}"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigurationError(f"{where}: the name of a step has letters, digits, - and _ only.")
    if not isinstance(given.value, dict):
        raise ConfigurationError(f"{where} must be a mapping with class_path and init_args; got {given.plain()!r}.")
    kinds = [key for key in ("class_path", *COMMANDS) if key in given.value]
    if len(kinds) != 1:
        unknown = next((key for key in given.value if key not in (*_OF_STEPS, "init_args", "overrides")), "")
        said = "has none of" if not kinds else f"has {' and '.join(kinds)}, of which one can be:"
        raise ConfigurationError(
            f"{where} {said} class_path, {', '.join(COMMANDS)}."
            f"{did_you_mean(unknown, ('class_path', *COMMANDS)) if unknown and not kinds else ''} "
            "class_path names a function or class of yours; the others run a command of itwinai with a config."
        )
    kind = kinds[0]
    arguments: dict[str, Given] = {}
    class_path = given.value[kind]
    if kind in COMMANDS:
        arguments = {key: one for key, one in given.value.items() if key not in _OF_STEPS and key != kind}
        arguments["config"] = given.value[kind]
        class_path = Given(given.value[kind].at, COMMANDS[kind])
    else:
        for key, one in given.value.items():
            if key not in (*_OF_STEPS, "class_path", "init_args"):
                known = ("class_path", "init_args", *_OF_STEPS)
                raise ConfigurationError(
                    f"{_at(one)}steps.{name} has no key '{key}'.{did_you_mean(key, known)} It has {', '.join(known)}; "
                    f"arguments of {class_path.value} are below init_args."
                )
        if "init_args" in given.value and given.value["init_args"].value is not None:
            _mapping(given.value["init_args"], f"steps.{name}.init_args")
            arguments = given.value["init_args"].value
    if not isinstance(class_path.value, str) or "." not in class_path.value:
        raise ConfigurationError(
            f"{_at(class_path)}steps.{name}.class_path must be module.name of a function or class; got "
            f"{class_path.plain()!r}."
        )
    own = given.value
    alone = own["alone"].value if "alone" in own else kind in _ALONE
    if not isinstance(alone, bool):
        raise ConfigurationError(f"{_at(own['alone'])}steps.{name}.alone must be true or false; got {alone!r}.")
    return Step(
        name=name,
        at=given.at,
        class_path=class_path,
        arguments=Given(own["init_args"].at if "init_args" in own else given.at, arguments),
        after=_names(own, "after", name),
        inputs=_names(own, "inputs", name),
        packages=_names(own, "packages", name),
        alone=alone,
        slurm=_mapping(own["slurm"], f"steps.{name}.slurm") if "slurm" in own else {},
        command=kind if kind in COMMANDS else "",
    )


def _needs_of(step: Step) -> dict[str, str]:
    """Return the names of the steps that a step needs, each with the place where it says so."""
    found = {one.step: given.at or step.at for one, given in references_in(step.arguments)}
    return {**dict.fromkeys(step.after, step.at), **found}


def _override(top: dict[str, Given], path: str, value: Any) -> None:
    """Set a value of a pipeline at a path."""
    flag = f"--{path}"
    names = path.split(".")
    steps = top["steps"].value
    if names[0] != "steps" or len(names) < 3:
        if names[0] in _TOP and len(names) == 1 and names[0] != "steps":
            top[names[0]] = as_given(value, flag)
            return
        if names[0] == "slurm" and len(names) == 2:
            top.setdefault("slurm", Given(flag, {})).value[names[1]] = as_given(value, flag)
            return
        raise ConfigurationError(
            f"{flag}: there is no such flag.{did_you_mean(names[0], _TOP) if names[0] not in _TOP else ''} "
            "Values are set as --steps.NAME.ARGUMENT=VALUE."
        )
    name, *rest = names[1:]
    if name not in steps:
        raise ConfigurationError(
            f"{flag}: there is no step '{name}'.{did_you_mean(name, steps)} Steps are {_list(steps)}."
        )
    step = steps[name].value
    if not isinstance(step, dict):
        return  # said below
    command = next((key for key in COMMANDS if key in step), None)
    if rest[0] in (*_OF_STEPS, "class_path", "init_args", "overrides", *COMMANDS):
        node = step
    elif command is None:
        node = step.setdefault("init_args", Given(flag, {})).value
    elif len(rest) > 1 or rest[0] == "seed_everything":  # a value of its config
        overrides = step.setdefault("overrides", Given(flag, {})).value
        overrides[".".join(rest)] = as_given(value, flag)
        return
    else:
        node = step
    if rest[0] == "overrides" and len(rest) > 1:
        step.setdefault("overrides", Given(flag, {})).value[".".join(rest[1:])] = as_given(value, flag)
        return
    for one in rest[:-1]:
        below = node.setdefault(one, Given(flag, {}))
        if (
            isinstance(below.value, dict)
            and "class_path" in below.value
            and rest[-1] not in ("class_path", "init_args")
        ):
            below = below.value.setdefault("init_args", Given(flag, {}))
        if not isinstance(below.value, dict):
            raise ConfigurationError(f"{flag}: '{one}' is {below.plain()!r}, and not a section.")
        node = below.value
    node[rest[-1]] = as_given(value, flag)


def overrides_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values that flags of a command line set, by path.

    Raises:
        ConfigurationError: an argument is not a flag with a value.
    """
    from itwinai.config.source import flags_of

    found: dict[str, Any] = {}
    for flag, value in flags_of(arguments):
        if not flag.startswith("--"):
            raise ConfigurationError(f"'{flag or value}' belongs to no flag. See `itwinai run --help`.")
        if value is None:
            raise ConfigurationError(f"{flag} needs a value: {flag}=VALUE. See `itwinai run --help`.")
        found[flag.removeprefix("--")] = scalar(value)
    return found


def flag_of(path: str, value: Any) -> str:
    """Return the flag that sets a value."""
    return f"--{path}={value if isinstance(value, str) else json.dumps(value)}"


def _names(own: Mapping[str, Given], key: str, step: str) -> tuple[str, ...]:
    if key not in own or own[key].value is None:
        return ()
    value = own[key].plain()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise ConfigurationError(f"{_at(own[key])}steps.{step}.{key} must be a list of texts; got {value!r}.")
    return tuple(listed)


def _mapping(given: Given, path: str) -> dict[str, Any]:
    if not isinstance(given.value, dict):
        raise ConfigurationError(f"{_at(given)}{path} must be a mapping of names to values; got {given.plain()!r}.")
    plain: dict[str, Any] = given.plain()
    return plain


def _list(names: Any) -> str:
    from itwinai.reporting.formatting import listed

    return listed(names)


def _at(given: Given) -> str:
    return f"{given.at}: " if given.at else ""
