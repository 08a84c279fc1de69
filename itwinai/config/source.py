"""What config files and flags say, each value with the place where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from itwinai.errors import ConfigurationError, did_you_mean_file

SHORT_FLAGS = {
    "--strategy": "--trainer.strategy",
    "--devices": "--trainer.devices",
    "--num-nodes": "--trainer.num_nodes",
    "--num_nodes": "--trainer.num_nodes",
    "--logger": "--trainer.logger",
    "--ckpt": "--ckpt_path",
    "--batch-size": "--batch_size",
}
SWITCHES = {"--watch": "--trainer.watch=true", "--overwrite": "--overwrite=true"}
"""Flags without a value, and what they stand for."""

CONFIG_FLAGS = ("-c", "--config")
DEFAULT_CONFIG = "config.yaml"
"""Read where no config is named, from the current folder."""

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
CLASS_SECTIONS = ("model", "data", "optimizer", "lr_scheduler")

_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_STEPS = re.compile(r"^[\"']?steps[\"']?\s*:", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """YAML as the parser reads it: a date is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass
class Given:
    """A value of a config.

    Attributes:
        at: where it stands: ``config.yaml:4``, or the flag; empty for a value that was given in Python.
        value: a plain value, or a dict or list of `Given`.
    """

    at: str
    value: Any

    def plain(self) -> Any:
        """Return the value alone."""
        if isinstance(self.value, dict):
            return {name: one.plain() for name, one in self.value.items()}
        return [one.plain() for one in self.value] if isinstance(self.value, list) else self.value

    def find(self, path: str) -> Given | None:
        """Return the value at a dotted path; None if there is none."""
        node = self
        for name in path.split("."):
            if not isinstance(node.value, dict) or name not in node.value:
                return None
            node = node.value[name]
        return node


def as_given(value: Any, at: str = "") -> Given:
    """Return plain values as `Given`, all at one place."""
    if isinstance(value, Mapping):
        return Given(at, {str(name): as_given(one, at) for name, one in value.items()})
    if isinstance(value, (list, tuple)):
        return Given(at, [as_given(one, at) for one in value])
    return Given(at, value)


def expand_short_flags(argv: Sequence[str]) -> list[str]:
    """Replace short flags such as `--strategy` by the trainer's arguments that they stand for.

    They are put behind everything else, so that they win over a config file that is named after them.
    """
    kept: list[str] = []
    moved: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument in SWITCHES:
            moved.append(SWITCHES[argument])
            continue
        if flag not in SHORT_FLAGS:
            kept.append(argument)
        elif equals:
            moved.append(f"{SHORT_FLAGS[flag]}={value}")
        else:
            moved += [SHORT_FLAGS[flag], *[value for value in [next(arguments, None)] if value is not None]]
    return kept + moved


def flags_of(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the flags of a command line, each with its value, or None if it has none.

    Words that belong to no flag come with an empty flag.
    """
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        flag, equals, value = argument.partition("=")
        if not _is_flag(argument):
            yield "", argument
        elif equals:
            yield flag, value
        else:
            yield flag, waiting.pop() if waiting and not _is_flag(waiting[-1]) else None


def scalar(text: str) -> Any:
    """Return what the value of a flag stands for."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def read_config(path: str) -> Given:
    """Read a config file.

    Args:
        path: of the file; or YAML, which stands for a file that has it.

    Raises:
        ConfigurationError: there is no such file, or it is not valid YAML, not a mapping, or has a key twice.
    """
    text, name = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        root = None if node is None else _given(node, loader, name)
    except yaml.YAMLError as error:
        raise ConfigurationError(_syntax_error(error, text, name)) from None
    if root is None or root.value is None:
        raise ConfigurationError(
            f"{name} is empty. A config has sections 'model', 'data' and 'trainer'; "
            "`itwinai fit --model module.Class --data module.Class --print_config` prints a whole one."
        )
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else repr(root.value)
        raise ConfigurationError(
            f"{root.at}: there is {kind} at the top level of the config. Accepted are sections: 'model:', 'data:', "
            "'trainer:'."
        )
    return root


def with_default_config(arguments: Sequence[str]) -> list[str]:
    """Return flags with the config of the current folder in front, if they name neither a config nor a model.

    Args:
        arguments: the flags of a command line, without its command.
    """
    named = any(flag in (*CONFIG_FLAGS, "--model") for flag, _ in flags_of(arguments))
    return list(arguments) if named or not Path(DEFAULT_CONFIG).is_file() else ["-c", DEFAULT_CONFIG, *arguments]


def named_configs(given: Sequence[str] | None, command: str) -> list[str]:
    """Return the config files that a command was given, or that of the current folder.

    Args:
        given: the values of its flag.
        command: as it is typed, for the error.

    Raises:
        ConfigurationError: there are none.
    """
    if given:
        return list(given)
    if Path(DEFAULT_CONFIG).is_file():
        return [DEFAULT_CONFIG]
    raise ConfigurationError(
        f"No config is given, and there is no {DEFAULT_CONFIG} in {Path.cwd()}. Give one: {command} -c CONFIG."
        f"{_nearby(Path())}"
    )


def check_config_files(arguments: Sequence[str]) -> None:
    """Raise an error for the first config file of a command line that cannot be read.

    Raises:
        ConfigurationError: see `read_config`.
    """
    for flag, value in flags_of(arguments):
        if flag in CONFIG_FLAGS and value is not None and "://" not in value:
            read_config(value)


def given_by(arguments: Sequence[str]) -> Given:
    """Return what the config files and flags of a command line say, the later ones over the earlier."""
    root = Given("", {})
    for flag, value in flags_of(arguments):
        name = SHORT_FLAGS.get(flag, flag).removeprefix("--")
        if flag in CONFIG_FLAGS:
            if value is not None and "://" not in value:
                root = _merge(root, read_config(value))
        elif value is not None and name and not name.startswith("-") and not name.endswith(("+", ".help", "_config")):
            given = Given(flag, scalar(value))
            if name in CLASS_SECTIONS and isinstance(given.value, str) and not Path(given.value).exists():
                given.value = {"class_path": Given(flag, given.value)}
            _set_at(root, name, given)
    return root


def _merge(first: Given, second: Given) -> Given:
    """Return one config over another: what both have is as the second says."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        return second
    classes = [one.value["class_path"].value if "class_path" in one.value else None for one in (first, second)]
    if classes[1] is not None and classes[0] not in (None, classes[1]):
        return second
    merged = dict(first.value)
    if "class_path" in merged and not any(name in second.value for name in CLASS_KEYS):
        second = Given(second.at, {"init_args": second})  # a section without class_path goes into the class before
    for name, one in second.value.items():
        merged[name] = _merge(merged[name], one) if name in merged else one
    return Given(first.at, merged)


def _set_at(root: Given, path: str, given: Given) -> None:
    """Set a value of a config at a path, in which ``init_args`` may be left out."""
    *parents, last = path.split(".")
    node = root
    for name in parents:
        if (holder := _holder(node, name, given.at)) is None:
            return  # it reaches into a list
        node = holder.value.setdefault(name, Given(given.at, {}))
    if (holder := _holder(node, last, given.at)) is not None:
        holder.value[last] = _merge(holder.value[last], given) if last in holder.value else given


def classes_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the flags that name the classes of sections without ``class_path`` before the config.

    There a config's section goes into the class; behind it, it would have been refused before.
    """
    lacking = set()
    for flag, value in flags_of(arguments):
        if flag in CONFIG_FLAGS and value is not None and "://" not in value:
            config = read_config(value).value
            lacking |= {
                f"--{name}"
                for name in CLASS_SECTIONS
                if name in config and isinstance(config[name].value, dict) and "class_path" not in config[name].value
            }
    front: list[str] = []
    others: list[str] = []
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        flag, equals, _ = argument.partition("=")
        moved = front if flag in lacking else others
        moved.append(argument)
        if flag in lacking and not equals and waiting:
            moved.append(waiting.pop())
    command = 1 if others and not others[0].startswith("-") else 0
    return [*others[:command], *front, *others[command:]]


def _holder(node: Given, name: str, at: str) -> Given | None:
    """Return the mapping in which a name of a path is; None where there is no mapping."""
    if isinstance(node.value, str):
        node.value = {"class_path": Given(node.at, node.value)}
    if not isinstance(node.value, dict):
        return None
    if "class_path" in node.value and name not in CLASS_KEYS:
        holder: Given = node.value.setdefault("init_args", Given(at, {}))
        return holder if isinstance(holder.value, dict) else None
    return node


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not re.fullmatch(r"-|-\d.*|-\.\d.*", argument)


def _text(path: str) -> tuple[str, str]:
    """Return the text of a config and what it is called."""
    if path.lstrip().startswith("{") or "\n" in path:
        return path, "the config"
    file = Path(path)
    if file.is_dir():
        raise ConfigurationError(f"{path} is a folder, but -c needs a config file.{_nearby(file)}")
    if not file.exists():
        meant = did_you_mean_file(path, yaml_files(file.parent))
        raise ConfigurationError(f"There is no config file {path}.{meant or _nearby(file.parent)}")
    try:
        return file.read_text(encoding="utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None


def _nearby(folder: Path) -> str:
    """Return a sentence with the config files of a folder, or nothing if there are none."""
    found = yaml_files(folder)
    return f" Config files here: {', '.join(found[:5])}." if found else ""


def yaml_files(folder: Path, *, pipelines: bool = False) -> list[str]:
    """Return the YAML files of a folder that may be configs, or those that may be pipelines.

    Args:
        folder: where to look.
        pipelines: return files with a section ``steps``, which no config has, instead of all others.
    """
    found = sorted(file for pattern in ("*.yaml", "*.yml") for file in folder.glob(pattern) if file.is_file())
    return [str(file) for file in found if _has_steps(file) is pipelines]


def _has_steps(file: Path) -> bool:
    try:
        return bool(_STEPS.search(file.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False


def _given(node: yaml.Node, loader: _Loader, name: str) -> Given:
    at = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Given(at, [_given(one, loader, name) for one in node.value])
    if not isinstance(node, yaml.MappingNode):
        value = loader.construct_object(node)
        plain = isinstance(value, str) and isinstance(node, yaml.ScalarNode) and node.style is None
        return Given(at, float(value) if plain and _FLOAT.fullmatch(value) else value)
    found: dict[str, Given] = {}
    merged: dict[str, Given] = {}
    for key, value in node.value:
        line = f"{name}:{key.start_mark.line + 1}"
        if key.tag == "tag:yaml.org,2002:merge":
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged |= _given(one, loader, name).value
            continue
        text = str(loader.construct_object(key, deep=True))
        if text in found:
            raise ConfigurationError(
                f"{line}: '{text}' is there twice; the first is in line {found[text].at.rpartition(':')[2]}. Keep one."
            )
        found[text] = _given(value, loader, name)
        found[text].at = line
    return Given(at, {**merged, **found})


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{name} is not valid YAML: {error}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    problem = str(getattr(error, "problem", "") or error)
    begun = getattr(error, "context_mark", None)
    before = mark.line - 1
    while before >= 0 and not lines[before].strip():
        before -= 1
    if "<block end>" in problem and before >= 0 and _key_of(line) and _key_of(lines[before]):
        steps = [len(one) - len(one.lstrip(" ")) for one in (lines[before], line)]
        if steps[0] > steps[1] and not lines[before].rstrip().endswith(":"):
            return (
                f"{name}:{before + 1}: '{_key_of(lines[before])}' is indented by {steps[0]} spaces, and "
                f"'{_key_of(line)}' after it (line {mark.line + 1}) by {steps[1]}. Keys of one section start in the "
                f"same column.\n    {lines[before]}\n    {line}"
            )
    if "\t" in line[: mark.column + 1]:
        reason = "there is a tab. YAML is indented with spaces."
    elif begun is not None and begun.line != mark.line:
        reason = f"this does not continue line {begun.line + 1}: {problem}. Look at brackets, quotes and indentation."
        line = (
            f"{lines[begun.line]}\n  ...\n    {line}"
            if begun.line < mark.line - 1
            else f"{lines[begun.line]}\n    {line}"
        )
    else:
        reason = f"this is not valid YAML: {problem}. Check the indentation, and quote text that contains ': '."
    return f"{name}:{mark.line + 1}: {reason}\n    {line}".replace("\t", "<tab>").rstrip()


def _key_of(line: str) -> str:
    """Return the key of a line, or nothing."""
    found = re.match(r" *([\w.-]+):(?: |$)", line)
    return found[1] if found else ""
