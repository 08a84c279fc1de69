"""`itwinai init KIND [NAME]`: a folder with a module, its data and a config, in which every command runs at once."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser
from itwinai.errors import ConfigurationError, did_you_mean

TEMPLATES = Path(__file__).parent / "init_templates"

KINDS = {
    "digits": "classify scanned digits with a small convolutional network",
    "timeseries": "forecast the next day of an hourly series with a GRU",
    "tabular": "predict a column of a CSV file from the others",
    "image": "classify colour images with a small residual network",
}
_NEEDS = {"digits": ("sklearn", "scikit-learn")}
"""What a kind needs beside itwinai: the package, as it is imported and as it is installed."""

_README = "README.md"


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``init``.

    Raises:
        ConfigurationError: the kind is unknown, or the folder is not empty.
    """
    given = _parser().parse_args(argv)
    if given.list:
        print(list_text())
        return 0
    if given.kind not in KINDS:
        named = f" For a folder of that name: itwinai init digits {given.kind}." if given.name is None else ""
        hint = did_you_mean(given.kind, KINDS)
        raise ConfigurationError(f"There is no kind '{given.kind}'.{hint or named} The kinds are\n{list_text()}")
    print(next_steps(given.kind, write_project(given.kind, Path(given.name or given.kind))))
    return 0


def write_project(kind: str, folder: Path) -> Path:
    """Write the files of a kind.

    Args:
        kind: one of `KINDS`.
        folder: where to write them; a new folder, or an empty one.

    Returns:
        The folder.

    Raises:
        ConfigurationError: there is something at the path already, or it cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ConfigurationError(
            f"{folder} {what}, and is not overwritten. Name another folder: itwinai init {kind} NAME."
        )
    name = folder.absolute().resolve().name
    readme = (TEMPLATES / _README).read_text(encoding="utf-8")
    title = f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _README).write_text(readme.replace("NAME", name).replace("TITLE", title), encoding="utf-8")
        for source in sorted((TEMPLATES / kind).glob("*.*")):
            (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return folder


def next_steps(kind: str, folder: Path) -> str:
    """Return what to do in a folder that was written.

    Args:
        kind: of the project.
        folder: in which it is.
    """
    files = ", ".join(path.name for path in sorted(folder.iterdir()))
    steps = [("itwinai fit", "train it"), ("itwinai predict --output p.parquet", "write its predictions to a file")]
    if find_spec("ray") is not None:
        steps.insert(1, ("itwinai tune", "search for better hyperparameters"))
    if folder.resolve() != Path.cwd().resolve():
        steps.insert(0, (f"cd {folder}", ""))
    module, package = _NEEDS.get(kind, ("", ""))
    if module and find_spec(module) is None:
        steps.insert(0, (f"pip install {package}", "it has the data"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:<{width}}  {text}".rstrip() for command, text in steps]
    return "\n".join([f"written to {folder}: {files}", "", "next:", *lines, "", f"{folder / _README} has more."])


def list_text() -> str:
    """Return the kinds, and what each is."""
    width = max(map(len, KINDS))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in KINDS.items())


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai init",
        usage="itwinai init [KIND] [NAME]",
        description="Write a folder with a module, its data and a config, in which every command runs at once.",
        epilog=f"kinds:\n{list_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", default="digits", metavar="KIND", help="what to begin with [digits]")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the folder [that of the kind's name]")
    parser.add_argument("--list", action="store_true", help="list the kinds, and write nothing")
    return parser
