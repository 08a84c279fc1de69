"""Find the subcommand of ``itwinai drought`` and hand the rest of the command line to it."""

from __future__ import annotations

import sys
from importlib import import_module

from itwinai.errors import ItwinaiError, did_you_mean

_COMMANDS: dict[str, tuple[str, str]] = {
    "simulate": ("itwinai_drought.commands.simulate", "make a store of weather, maps and simulated water"),
    "grid": ("itwinai_drought.commands.grid", "turn a file of predictions into a gridded store"),
    "indices": ("itwinai_drought.commands.indices", "compute drought indices of a store"),
    "report": ("itwinai_drought.commands.report", "train, compare with baselines, and make the figures of the README"),
    "figures": ("itwinai_drought.commands.figures", "draw time series and maps of predictions"),
}


def usage() -> str:
    """Return the text of ``itwinai drought --help``."""
    rows = "\n".join(f"  {name:<11}{text}" for name, (_, text) in _COMMANDS.items())
    return (
        "usage: itwinai drought COMMAND ...\n\n"
        "Learn a hydrological model from gridded weather, and predict droughts.\n\n"
        f"commands:\n{rows}\n\n"
        "`itwinai drought COMMAND --help` lists its flags.\n"
    )


def main(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: those after ``itwinai drought``.

    Returns:
        The exit code.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in _COMMANDS:
        hint = did_you_mean(name, _COMMANDS)
        print(f"error: there is no command '{name}'.{hint} The commands are {', '.join(_COMMANDS)}.", file=sys.stderr)
        return 2
    command = import_module(_COMMANDS[name][0])
    try:
        return int(command.main(rest))
    except ItwinaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
