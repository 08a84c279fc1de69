"""The reference has every command with its flags, and every public name."""

from __future__ import annotations

import re
from importlib import import_module

import command_parsers
import pytest
from command_reference import reference

from itwinai.cli.main import command_names, main, usage
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    """Return the section of each command."""
    parts = re.split(r"^#+ itwinai (.+)$", reference(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_a_section(commands: dict[str, str]) -> None:
    listed = re.findall(r"^  ([\w-]+)  ", usage().split("commands:\n")[1].split("\n\n")[0], re.MULTILINE)
    assert listed == list(command_names())
    assert [name for name in listed if name not in commands] == []


def test_commands_within_commands(commands: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for command, others in command_parsers.OTHERS.items():
        assert main([command, "nonsense"]) == 1
        said = capsys.readouterr().err
        assert all(name in said for name in others)
        known = re.search(r"There are ([^;.]*)", said)
        assert known is not None
        # `itwinai slurm` also takes the names of commands to submit.
        assert set(known[1].split(", ")) - set(command_names()) == set(others)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("fit", ("--strategy", "--trainer.max_restarts", "--trainer.split_batches", "--ckpt_path", "--print_config")),
        ("predict", ("--output", "--columns", "--split")),
        ("tune", ("--resume", "--retrain-best")),
        ("benchmark simulate", ("--node-bandwidth", "--layers")),
        ("slurm", ("--gpus-per-node", "--max-requeues", "--follow")),
        ("slurm sites", ("name",)),
        ("checkpoint export", ("--module",)),
        ("install", ("--cached-only", "package")),
    ],
)
def test_flags(commands: dict[str, str], command: str, flags: tuple[str, ...]) -> None:
    for flag in flags:
        assert flag in commands[command]
    assert "==SUPPRESS==" not in commands[command]


def test_hidden_flags_stay_hidden(commands: dict[str, str]) -> None:
    assert "--probe" not in commands["doctor"]


def test_every_public_name_has_an_entry() -> None:
    text = "".join(page.read_text() for page in (REPOSITORY / "docs/reference/api").glob("*.md"))
    for package in (
        "itwinai",
        "itwinai.callbacks",
        "itwinai.strategies",
        "itwinai.loggers",
        "itwinai.tune",
        "itwinai.slurm",
    ):
        names = [name for name in import_module(package).__all__ if not name.startswith("__")]
        assert [name for name in names if not re.search(rf":: {package}\.{name}$", text, re.MULTILINE)] == []
