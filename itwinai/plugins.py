"""What installed packages add: strategies, callbacks, loggers, commands and more, found by their entry points.

A look-up takes about a millisecond and imports nothing: the text files of entry points are read here, as importing
`importlib.metadata` takes as long as ``itwinai --help``. Only `Plugin.load` imports a plugin, when its name is used.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from itwinai.errors import PluginError

STRATEGIES = "itwinai.strategies"
CALLBACKS = "itwinai.callbacks"
LOGGERS = "itwinai.loggers"
COMMANDS = "itwinai.commands"
SITES = "itwinai.sites"
EXAMPLES = "itwinai.examples"
CALLBACK_FACTORIES = "lightning.pytorch.callbacks_factory"

GROUPS = {
    STRATEGIES: "a StrategyEntry, for --strategy NAME",
    CALLBACKS: "a Callback, for --trainer.callbacks+=NAME and class_path: NAME",
    LOGGERS: "a Logger, for --logger NAME",
    COMMANDS: "a function main(arguments) -> int, for itwinai NAME",
    SITES: "a package with the YAML files of site profiles",
    EXAMPLES: "a package with the files of an example",
    CALLBACK_FACTORIES: "a function that returns callbacks, which Lightning adds to every trainer",
}
"""The groups of entry points, and what a value of each stands for."""

_VALUE = re.compile(r"(\w+(?:\.\w+)*)(?::(\w+(?:\.\w+)*))?\s*(?:\[[^]]*\])?")


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package.

    Attributes:
        group: one of `GROUPS`.
        name: what users write.
        value: what it loads, as ``package.module:attribute``.
        distribution: name of the package that was installed.
        version: of that package.
        summary: one line about that package.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str = ""
    summary: str = ""

    def __str__(self) -> str:
        kind = self.group.rpartition(".")[2].removesuffix("s").replace("strategie", "strategy").replace("_", " ")
        return f"the {kind} '{self.name}' of {self.source}"

    @property
    def source(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".rstrip()

    @property
    def class_path(self) -> str:
        """What it loads, as configs name a class."""
        return self.value.partition("[")[0].strip().replace(":", ".")

    def load(self) -> Any:
        """Import what the entry point names.

        Raises:
            PluginError: the value has another form, or the import fails in whatever way.
        """
        parts = _VALUE.fullmatch(self.value)
        if parts is None:
            raise self.error(f"{self.value!r} is not of the form package.module:attribute")
        module, attribute = parts.groups()
        try:
            loaded: Any = import_module(module)
            for name in attribute.split(".") if attribute else ():
                loaded = getattr(loaded, name)
        except (Exception, SystemExit) as error:  # a package may do anything while it is imported
            raise self.error(_cause(error)) from error
        return loaded

    def error(self, reason: str) -> PluginError:
        """Return the error that says why this plugin cannot be used.

        Args:
            reason: what is wrong with it.
        """
        text = str(self)
        return PluginError(
            f"{text[0].upper()}{text[1:]} cannot be used: {reason}. Repair, update or uninstall "
            f"{self.distribution}; `itwinai plugins` tries all plugins.",
            reason,
        )


def find_plugins(group: str | None = None) -> list[Plugin]:
    """Return what installed packages add, in the order of their names. Nothing is imported.

    Args:
        group: one of `GROUPS`; all of them by default.
    """
    found = [plugin for folder, text in _entry_point_files() for plugin in _plugins_of(folder, text)]
    wanted = [plugin for plugin in found if group in (None, plugin.group)]
    order = list(GROUPS)
    return sorted(wanted, key=lambda plugin: (order.index(plugin.group), plugin.name, plugin.distribution))


def find_plugin(group: str, name: str) -> Plugin | None:
    """Return the plugin of a name; None if there is none.

    Args:
        group: one of `GROUPS`.
        name: what the user wrote.

    Raises:
        PluginError: there are two of that name.
    """
    found = [plugin for plugin in find_plugins(group) if plugin.name == name]
    if len(found) > 1:
        raise two_of_one_name(found)
    return found[0] if found else None


def two_of_one_name(plugins: list[Plugin]) -> PluginError:
    """Return the error for plugins that have the same name."""
    first = plugins[0]
    sources = " and ".join(plugin.source for plugin in plugins)
    reason = f"{sources} both have this name" if len(plugins) == 2 else f"{sources} all have this name"
    what = str(first).partition(" of ")[0]
    return PluginError(
        f"{what[0].upper()}{what[1:]} cannot be used: {reason}. Uninstall all but one of them.",
        reason,
    )


def check_callback_factories() -> None:
    """Raise an error if a factory of callbacks, which Lightning calls for every trainer, cannot be loaded.

    Lightning itself would end the program without a word where a package ends it, and would not say which it is.

    Raises:
        PluginError: one cannot be loaded.
    """
    for plugin in find_plugins(CALLBACK_FACTORIES):
        if not callable(factory := plugin.load()):
            raise plugin.error(f"it is a {type(factory).__name__}, and not a function that returns callbacks")


def _entry_point_files() -> Iterator[tuple[Path, str]]:
    """Yield the folders of installed packages that may have plugins, each with the text of its entry points.

    As in `importlib.metadata`, the first package of a name on the path is the one that is installed.
    """
    seen = set()
    for place in sys.path:
        try:
            names = sorted(os.listdir(place or "."))
        except OSError:
            continue
        for name in names:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            package = re.sub(r"[-_.]+", "-", name.rpartition(".")[0].partition("-")[0]).lower()
            if package in seen:
                continue
            seen.add(package)
            try:
                text = Path(place, name, "entry_points.txt").read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if any(f"[{group}]" in text for group in GROUPS):
                yield Path(place, name), text


def _plugins_of(folder: Path, text: str) -> Iterator[Plugin]:
    about = _about(folder)
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1]
        elif group in GROUPS and line and not line.startswith(("#", ";")):
            name, _, value = map(str.strip, line.partition("="))
            yield Plugin(group, name, value, about["Name"], about["Version"], about["Summary"])


def _about(folder: Path) -> dict[str, str]:
    """Return name, version and summary of an installed package."""
    name, _, version = folder.stem.partition("-")
    about = {"Name": name, "Version": version, "Summary": ""}
    for file in ("METADATA", "PKG-INFO"):
        try:
            head = (folder / file).read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        except OSError:
            continue
        for line in head.splitlines():
            key, _, value = line.partition(": ")
            if key in about:
                about[key] = value
        break
    return about


def _cause(error: BaseException) -> str:
    """Return what went wrong in an import, and the line of the package where it did."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SystemExit):
        return f"it ends the program when it is imported, with {error.code!r}{place}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": .") + place
