"""Lightning's command line makes a parser per subcommand, and asks itself which there are."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from itwinai.config.lightning_cli import ConfiguredCLI, command_line

ALL = ["fit", "validate", "test", "predict"]


class ParsersMade(Exception):
    """Carries their names out of the command line."""


@pytest.mark.parametrize(("arguments", "made"), [(["test", "--model", "x"], ["test"]), ([], ALL), (["--help"], ALL)])
def test_only_the_subcommand_that_is_used_has_a_parser(
    arguments: list[str], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_out(cli: Any, parser: Any, args: Any) -> NoReturn:
        assert list(cli.subcommands()) == ALL  # messages name what there is
        raise ParsersMade(list(cli._subcommand_parsers))

    monkeypatch.setattr(ConfiguredCLI, "parse_arguments", give_out)
    with pytest.raises(ParsersMade) as parsers:
        command_line(arguments)
    assert parsers.value.args == (made,)
