"""Find the subcommand and hand the rest of the command line to it.

Nothing heavy is imported here or by the subcommands' files, so that `itwinai --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from itwinai import plugins
from itwinai.plugins import Plugin, find_plugin, find_plugins

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("itwinai.cli.init", "write a folder to begin with: module, data and config, which run at once"),
    "fit": ("itwinai.cli.fit", "train a LightningModule from a config file"),
    "validate": ("itwinai.cli.fit", "evaluate on the validation data"),
    "test": ("itwinai.cli.fit", "evaluate on the test data"),
    "predict": ("itwinai.cli.fit", "write the predictions of a model to a file"),
    "tune": ("itwinai.cli.tune", "search for good hyperparameters of a run from a config file"),
    "benchmark": ("itwinai.cli.benchmark", "compare strategies and numbers of workers; see how far a model scales"),
    "run": ("itwinai.cli.run", "run the steps of a pipeline that have changed"),
    "slurm": ("itwinai.cli.slurm", "write, submit and follow jobs of a SLURM machine"),
    "check": ("itwinai.cli.check", "check that a module trains, resumes and evaluates alike, wherever it runs"),
    "config": ("itwinai.cli.config", "explain a key of a config; write the schema by which editors check configs"),
    "checkpoint": ("itwinai.cli.checkpoint", "inspect, verify, convert and export checkpoints"),
    "predictions": ("itwinai.cli.predictions", "verify and inspect files of predictions"),
    "plugins": ("itwinai.cli.plugins", "list what installed packages add, or start such a package"),
    "completion": ("itwinai.cli.completion", "print what completes commands and flags in bash, zsh or fish"),
    "doctor": ("itwinai.cli.doctor", "show what is installed, and try every strategy"),
    "install": ("itwinai.cli.install", "build and install Horovod, which has no ready-made package"),
}
"""Commands, each with the module that runs it, and what it does."""


def command_names() -> tuple[str, ...]:
    """Return the names of the commands, those of plugins aside."""
    return tuple(COMMANDS)


def usage() -> str:
    """Return the text of ``itwinai --help``."""
    rows = "\n".join(f"  {name:<13}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: itwinai COMMAND ...\n\n"
        "Run any LightningModule unchanged on DDP, DeepSpeed, Horovod or Ray, chosen by one flag.\n\n"
        f"commands:\n{rows}\n\n{_plugin_rows()}"
        "examples:\n"
        "  itwinai init timeseries demo && cd demo && itwinai fit\n"
        "  itwinai fit -c config.yaml --strategy horovod --devices 2\n"
        "  itwinai tune -c config.yaml\n"
        "  itwinai benchmark -c config.yaml --strategies ddp,horovod --workers 1,2,4\n"
        "  itwinai doctor\n\n"
        "`itwinai COMMAND --help` lists its flags.\n"
    )


def _plugin_rows() -> str:
    """Return the commands that installed packages add, none of which is imported for that."""
    added = [plugin for plugin in find_plugins(plugins.COMMANDS) if plugin.name not in COMMANDS]
    width = max([13, *(len(plugin.name) + 2 for plugin in added)])
    rows = [f"  {plugin.name:<{width}}{plugin.summary or plugin.source}\n" for plugin in added]
    return "".join(["commands of plugins:\n", *dict.fromkeys(rows), "\n"]) if rows else ""


def run() -> int:
    """Be the command: run the command line that this process was started with, and return the exit code."""
    from itwinai.launchers.worker import exit_soon

    exit_soon()
    return main()


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from itwinai import __version__

        print(f"itwinai {__version__}")
        return 0
    try:
        if argv[0] in COMMANDS:
            module = import_module(COMMANDS[argv[0]][0])
            arguments = argv if module.__name__ == "itwinai.cli.fit" else argv[1:]
            return int(module.main(arguments))
        plugin = None if argv[0].startswith("-") else find_plugin(plugins.COMMANDS, argv[0])
        if plugin is not None:
            return _run_plugin(plugin, argv[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from itwinai.launchers.failure_order import report_failure

        report_failure(error)
        return 1
    print(f"error: {misplaced_command(argv) or unknown_command(argv[0])}", file=sys.stderr)
    return 2


def _run_plugin(plugin: Plugin, arguments: list[str]) -> int:
    command = plugin.load()
    if not callable(command):
        raise plugin.error(f"{plugin.value} is not a function main(arguments) -> int")
    from itwinai.errors import ItwinaiError

    try:
        return int(command(arguments) or 0)
    except ItwinaiError as error:  # what a command raises so is a message, whoever wrote the command
        print(f"error: {error}", file=sys.stderr)
        return 1


def misplaced_command(argv: Sequence[str]) -> str | None:
    """Return the message for a command that comes after flags; None if there is none."""
    command = next((one for one in argv if one in COMMANDS), None) if argv[0].startswith("-") else None
    return command and f"the command comes first: itwinai {command} {' '.join(one for one in argv if one != command)}"


def unknown_command(name: str) -> str:
    """Return the message for a command that does not exist, with the nearest that does."""
    from itwinai.errors import did_you_mean

    names = [*COMMANDS, *(plugin.name for plugin in find_plugins(plugins.COMMANDS))]
    hint = did_you_mean(name, names)
    return f"there is no command '{name}'.{hint} The commands are {', '.join(names)}; see `itwinai --help`."


if __name__ == "__main__":
    sys.exit(run())
