"""`itwinai plugins`: what installed packages add, whether each of it can be used, and the start of such a package.

Plugins are tried in a child process with a time limit, as importing them may do anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from itwinai.cli.arguments import ArgumentParser
from itwinai.errors import PluginError
from itwinai.plugins import (
    CALLBACK_FACTORIES,
    CALLBACKS,
    COMMANDS,
    EXAMPLES,
    GROUPS,
    LOGGERS,
    SITES,
    STRATEGIES,
    Plugin,
    find_plugins,
    two_of_one_name,
)

SECONDS = 120.0
"""Time limit for a process that tries plugins."""

SHOWN = 5
"""Files of a folder that are named."""

_DESCRIPTION = """\
List what installed packages add, try to load each, and say why one cannot be used. The exit code is 1 if there is one.
"""

_NONE = """\
No plugins are installed. A package adds names by entry points:

{groups}

`itwinai plugins new NAME` writes a package that has some.
"""


def main(argv: list[str]) -> int:
    """Run ``itwinai plugins``.

    Args:
        argv: the arguments after ``plugins``.

    Returns:
        The exit code: 1 if a plugin cannot be used.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "new":
        from itwinai.cli.plugins_new import write_plugin

        folder = write_plugin(arguments.name, arguments.output)
        print(
            f"written to {folder}; continue with its README.md:\n\n  cd {folder}\n  pip install -e '.[test]'\n  pytest"
        )
        return 0
    if arguments.out is not None:
        _try_from(arguments.first, arguments.out)
        return 0
    plugins = find_plugins()
    if not plugins:
        groups = "\n".join(f"  {group:<37}{text}" for group, text in GROUPS.items())
        print(_NONE.format(groups=groups), end="")
        return 0
    found = try_plugins(plugins)
    print(listing(plugins, found))
    return int(any(not usable for usable, _ in found))


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="itwinai plugins", description=_DESCRIPTION)
    # What this command starts itself with.
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="new NAME")
    text = "Write a package with a module, its data, a command and tests, which pass as they are."
    new = commands.add_parser("new", help="write a package that adds names", description=text)
    new.add_argument("name", metavar="NAME", help="lower case, as soil-moisture; the package is itwinai-NAME")
    new.add_argument("--output", type=Path, metavar="DIR", help="folder of the package (default: itwinai-NAME)")
    return parser


def listing(plugins: Sequence[Plugin], found: Sequence[tuple[bool, str]]) -> str:
    """Return what was found as text.

    Args:
        plugins: what packages add.
        found: for each, whether it can be used, and what it is or why not.
    """
    widths = [max(len(cell) for cell in cells) for cells in zip(*map(_cells, plugins), strict=True)]
    lines = []
    for group in dict.fromkeys(plugin.group for plugin in plugins):
        lines.append(f"{group}: {GROUPS[group]}")
        for plugin, (usable, text) in zip(plugins, found, strict=True):
            if plugin.group == group:
                row = "  ".join(f"{cell:<{width}}" for cell, width in zip(_cells(plugin), widths, strict=True))
                lines.append(f"  {row}  {text if usable else 'CANNOT BE USED'}".rstrip())
                lines += [] if usable else textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    failed = sum(not usable for usable, _ in found)
    packages = len({plugin.distribution for plugin in plugins})
    names = f"{len(plugins)} name{'s' * (len(plugins) > 1)} of {packages} package{'s' * (packages > 1)}"
    lines.append(f"{names}; " + (f"{failed} cannot be used." if failed else "all can be used."))
    return "\n".join(lines)


def _cells(plugin: Plugin) -> tuple[str, str, str]:
    return plugin.name, plugin.source, plugin.value


def try_plugins(plugins: Sequence[Plugin]) -> list[tuple[bool, str]]:
    """Load plugins in child processes; one that ends or blocks its process is blamed, and the next process continues.

    Args:
        plugins: all that `find_plugins` has found.

    Returns:
        For each, whether it can be used, and what it is or why not.
    """
    from itwinai.launchers.child_process import ChildProcess

    found: list[tuple[bool, str]] = []
    with tempfile.TemporaryDirectory(prefix="itwinai-plugins-", ignore_cleanup_errors=True) as folder:
        while len(found) < len(plugins):
            out = Path(folder, f"{len(found)}.jsonl")
            command = [sys.executable, "-m", "itwinai.cli.plugins", "--first", str(len(found)), "--out", str(out)]
            paths = os.pathsep.join(path for path in sys.path if path)  # that of this process, for pip install --target
            with ChildProcess(command, Path(folder, "log"), env={**os.environ, "PYTHONPATH": paths}) as child:
                in_time = child.wait(SECONDS)
            lines = out.read_text().splitlines() if out.exists() else []
            found += [(bool(usable), str(text)) for usable, text in map(json.loads, lines)]
            if len(found) < len(plugins):
                ended = f"it ends the process when it is imported, with {child.code}"
                found.append((False, ended if in_time else f"importing it takes longer than {SECONDS:g} s"))
    return found


def _try_from(first: int, out: Path) -> None:
    """Try plugins one after the other, and note each in a file as soon as it is known."""
    plugins = find_plugins()
    with out.open("a") as file:
        for plugin in plugins[first:]:
            same = [one for one in plugins if (one.group, one.name) == (plugin.group, plugin.name)]
            try:
                if len(same) > 1 and plugin.group not in (CALLBACK_FACTORIES, SITES, EXAMPLES):
                    raise two_of_one_name(same)
                result = True, _CHECKS[plugin.group](plugin)
            except PluginError as error:
                result = False, error.reason
            except Exception as error:  # a class that was loaded may do anything when it is looked at
                result = False, f"{type(error).__name__}: {error}"
            file.write(json.dumps(result) + "\n")
            file.flush()


def _strategy(plugin: Plugin) -> str:
    from lightning.pytorch.strategies import StrategyRegistry

    from itwinai.strategies.registry import STRATEGY_NAMES, entry_of

    _check_free(plugin, {*STRATEGY_NAMES, *StrategyRegistry.available_strategies(), "auto"})
    return entry_of(plugin).deviation or "same weights as one process"


def _callback(plugin: Plugin) -> str:
    from itwinai.config.plugin_callbacks import builtin_callbacks, callback_class

    _check_free(plugin, builtin_callbacks())
    return _first_line(callback_class(plugin))


def _logger(plugin: Plugin) -> str:
    from itwinai.loggers.registry import LOGGERS as BUILTIN
    from itwinai.loggers.registry import kind_of

    _check_free(plugin, set(BUILTIN))
    kind_of(plugin)
    return _first_line(plugin.load())


def _command(plugin: Plugin) -> str:
    from itwinai.cli.main import command_names

    _check_free(plugin, set(command_names()))
    return _function(plugin)


def _function(plugin: Plugin) -> str:
    loaded = plugin.load()
    if not callable(loaded):
        raise plugin.error(f"{plugin.value} is not a function")
    return _first_line(loaded)


def _files(plugin: Plugin, pattern: str) -> str:
    """Return the names of files beside the modules of a package."""
    places = list(getattr(plugin.load(), "__path__", ()))
    if not places:
        raise plugin.error(f"{plugin.value} is not a package, whose folder has the files")
    paths = (path for place in places for path in Path(place).glob(pattern) if path.name[0] not in "._")
    names = sorted(path.name for path in paths if path.suffix != ".py" and not (path / "__init__.py").exists())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _sites(plugin: Plugin) -> str:
    names = _files(plugin, "*.yaml")
    if not names:
        raise plugin.error(f"there are no files *.yaml in the folder of {plugin.value}")
    return names


def _example(plugin: Plugin) -> str:
    """Return the files of an example, such as its configs; where it has modules only, what it says about itself."""
    text = _files(plugin, "*") or _first_line(plugin.load())
    if not text:
        raise plugin.error(f"{plugin.value} has neither files beside its modules nor a docstring that says what it is")
    return text


_CHECKS: dict[str, Callable[[Plugin], str]] = {
    STRATEGIES: _strategy,
    CALLBACKS: _callback,
    LOGGERS: _logger,
    COMMANDS: _command,
    SITES: _sites,
    EXAMPLES: _example,
    CALLBACK_FACTORIES: _function,
}


def _check_free(plugin: Plugin, builtin: set[str]) -> None:
    """Raise an error for a name that stands for something without plugins, as it keeps that meaning.

    Raises:
        PluginError: the name is taken.
    """
    if plugin.name in builtin:
        raise plugin.error(f"'{plugin.name}' is a built-in name, and keeps its meaning; the plugin needs another name")


def _first_line(loaded: Any) -> str:
    return next(iter((getattr(loaded, "__doc__", None) or "").strip().splitlines()), "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
