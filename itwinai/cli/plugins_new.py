"""`itwinai plugins new NAME`: the files of `plugin_template`, with the name in the place of ``myplugin``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from itwinai.errors import ConfigurationError

TEMPLATE = Path(__file__).parent / "plugin_template"

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Write a package that adds names to itwinai.

    Args:
        name: of the package without ``itwinai-``, which is also the name of its command.
        folder: where to write it; by default ``itwinai-NAME`` in the current folder.

    Returns:
        The folder.

    Raises:
        ConfigurationError: the name cannot be one of a package, or is that of a command; or the folder is not empty.
    """
    from itwinai.cli.main import command_names

    short = name.removeprefix("itwinai-").removeprefix("itwinai_")
    if not _NAME.fullmatch(short):
        raise ConfigurationError(
            f"'{name}' cannot be the name of a plugin: it takes lower-case letters, digits, and dashes between them, "
            f"and begins with a letter.{_suggested(short)}"
        )
    short = short.replace("_", "-")
    if short in command_names():
        raise ConfigurationError(
            f"`itwinai {short}` is a command already, and that of the plugin would have the same name. Choose another."
        )
    folder = Path(f"itwinai-{short}") if folder is None else folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already, and is not overwritten. Name another with --output.")
    words = {
        "MyPlugin": "".join(part.capitalize() for part in short.split("-")),
        "itwinai_myplugin": f"itwinai_{short.replace('-', '_')}",
        "myplugin": short,
    }
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            target = folder / _replaced(str(source.relative_to(TEMPLATE)), words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_replaced(source.read_text(encoding="utf-8"), words), encoding="utf-8")
            shutil.copymode(source, target)
    return folder


def _replaced(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def _suggested(name: str) -> str:
    """Return the sentence with a name like the one that was given, if there is one."""
    plain = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()).strip("-")
    plain = plain.lstrip("0123456789-")
    return f" For example: '{plain}'." if len(plain) > 2 and _NAME.fullmatch(plain) else ""
