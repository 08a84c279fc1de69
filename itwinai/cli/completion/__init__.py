"""`itwinai completion bash|zsh|fish`: a script with which a shell completes commands, flags, names and files.

The script holds all words itself, so that a shell starts no Python to complete one.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser
from itwinai.errors import ConfigurationError

SHELLS = ("bash", "zsh", "fish")

_EPILOG = """
  itwinai completion bash --install    # the same for zsh and fish

writes the script where new shells find it, and says what else there is to do. Again after an update of itwinai, or when
a plugin was installed: the script has all words in it, so that completing starts no Python.
"""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``completion``.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    shell = given.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        parser.error(f"name the shell: itwinai completion {'|'.join(SHELLS)}")

    from itwinai.cli.completion.commands import root

    text: str = import_module(f"itwinai.cli.completion.{shell}").script(root()) + "\n"
    if not given.install:
        print(text, end="")
        return 0
    file = install_path(shell)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror or error}.") from None
    print(f"written: {file}\n{_next_step(shell, file)}")
    return 0


def install_path(shell: str) -> Path:
    """Return the file in which a shell looks for the completion of `itwinai`.

    Args:
        shell: one of `SHELLS`.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion/completions/itwinai",
        "zsh": Path.home() / ".zfunc/_itwinai",
        "fish": config / "fish/completions/itwinai.fish",
    }[shell]


def _next_step(shell: str, file: Path) -> str:
    """Return what else there is to do."""
    if shell == "zsh":
        return "put this into ~/.zshrc, before compinit if that is called there, and open a new shell:\n\n" + (
            f"  fpath=({file.parent} $fpath)\n  autoload -Uz compinit && compinit"
        )
    if shell == "bash":
        return (
            "open a new shell. If it completes nothing, the package bash-completion is not there: put this into "
            f"~/.bashrc\n\n  source {file}"
        )
    return "open a new shell"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai completion",
        usage="itwinai completion bash|zsh|fish [--install]",
        description="Print the script with which a shell completes commands, flags, names of strategies, and files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="the shell [that of $SHELL]")
    parser.add_argument("--install", action="store_true", help="write it to where the shell looks for it")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
