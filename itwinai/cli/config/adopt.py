"""`itwinai config --adopt`: let a config of a user's own LightningCLI name its classes, as `itwinai fit` needs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itwinai.config.source import CLASS_SECTIONS, Given, read_config
from itwinai.errors import ConfigurationError


def adopted(path: str, classes: Mapping[str, str]) -> str:
    """Return the text of a config file with the classes of its sections in it.

    Args:
        path: of the file.
        classes: class paths by section.

    Raises:
        ConfigurationError: a section has another class, or no class is given for one that has none.
    """
    config = read_config(path)
    text = Path(path).read_text(encoding="utf-8")
    wanted = config.plain()
    for name in CLASS_SECTIONS:
        section = config.value.get(name)
        nameless = section is not None and isinstance(section.value, dict) and "class_path" not in section.value
        if nameless and name not in classes:
            raise ConfigurationError(f"{section.at}: {name} has no class_path. Name its class: --{name} MODULE.CLASS.")
    # From the end of the file, so that the places of those before stay.
    sections = sorted((name for name in CLASS_SECTIONS if name in config.value), key=lambda name: -_line(config, name))
    for name in sections:
        section = config.value[name]
        if section.value is None and name in classes:
            wanted[name] = {"class_path": classes[name]}
            text = _with_class(text, _line(config, name), None, classes[name])
            continue
        if not isinstance(section.value, dict):
            continue
        if "class_path" in section.value:
            there = section.value["class_path"]
            short = "." not in str(there.value) and classes.get(name, "").endswith(f".{there.value}")
            if short:
                wanted[name]["class_path"] = classes[name]
                lines = text.splitlines(keepends=True)
                number = int(there.at.rpartition(":")[2]) - 1
                lines[number] = lines[number].replace(str(there.value), classes[name], 1)
                text = "".join(lines)
            elif classes.get(name, there.value) != there.value:
                raise ConfigurationError(f"{there.at}: {name} is {there.value} already, and not {classes[name]}.")
            continue
        wanted[name] = {"class_path": classes[name], "init_args": wanted[name]}
        text = _with_class(text, _line(config, name), section, classes[name])
    for name in classes:
        if name not in config.value:
            wanted[name] = {"class_path": classes[name]}
            text = f"{text.rstrip()}\n{name}:\n  class_path: {classes[name]}\n"
    return text if _means(text, wanted) else _written_anew(wanted)


def _line(config: Given, name: str) -> int:
    return int(config.value[name].at.rpartition(":")[2])


def _with_class(text: str, line: int, section: Given | None, path: str) -> str:
    """Return a text whose section, which begins in a line, has a class path, and what was in it as its arguments."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if section is None or not section.value:
        name = lines[line - 1].partition(":")[0]
        return "".join([*lines[: line - 1], f"{name}:\n  class_path: {path}\n", *lines[line:]])
    end = line
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " #"):
        end += 1
    while end > line and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1  # comments at the margin belong to the next section
    inside = [f"  {one}" if one.strip() else one for one in lines[line:end]]
    indents = [len(one) - len(one.lstrip()) for one in lines[line:end] if one.strip() and one.lstrip()[0] != "#"]
    indent = " " * min(indents, default=2)
    head = [f"{indent}class_path: {path}\n", f"{indent}init_args:\n"]
    return "".join([*lines[:line], *head, *inside, *lines[end:]])


def _means(text: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether a text is YAML for some values."""
    try:
        return bool(read_config(f"{text}\n").plain() == wanted)
    except ConfigurationError:
        return False


def _written_anew(wanted: Mapping[str, Any]) -> str:
    import yaml

    print("the file is rewritten without its comments: sections in braces cannot be edited in place", file=sys.stderr)
    return yaml.safe_dump(dict(wanted), sort_keys=False)


def check_adopted(path: str, text: str) -> None:
    """Raise an error if `itwinai fit` would not accept the new config.

    Args:
        path: of the config.
        text: what it is to become.

    Raises:
        ConfigurationError: there is a mistake in it.
    """
    from itwinai.config.lightning_cli import parsed

    try:
        parsed(["-c", f"{text}\n"])
    except ConfigurationError as error:
        message = str(error).replace("the config:", f"{path} with its classes, line ", 1)
        raise ConfigurationError(f"{path} is left as it is, as there is a mistake in it.\n{message}") from None
