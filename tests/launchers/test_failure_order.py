"""What ended a command or a step is told in one way: by its message, or with the user's lines that have failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from itwinai.errors import ConfigurationError
from itwinai.launchers.failure_order import report_failure
from itwinai.tracebacks import add_note


def reported(raising: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        raising()
    except Exception as error:
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # without this function
        report_failure(error)
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", [ConfigurationError, MisconfigurationException])
def test_a_known_error_is_a_message_unless_the_users_code_has_raised_it(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "lightning.made_up", "kind": kind}
    exec("def refuse():\n    raise kind('no such device')", namespace)
    assert reported(namespace["refuse"], capsys) == "error: no such device\n"

    def mine() -> None:
        raise kind("no such device")

    told = reported(mine, capsys)
    assert told.startswith("Traceback") and "in mine" in told and told.endswith("no such device\n")


def test_an_unknown_error_has_its_traceback_and_a_known_one_its_rank(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "lightning.made_up", "add_note": add_note, "kind": ConfigurationError}
    exec("def fail():\n    error = kind('refused')\n    add_note(error, '[rank 1]')\n    raise error", namespace)
    assert reported(namespace["fail"], capsys) == "error: refused\n[rank 1]\n"
    exec("def divide():\n    1 / 0", namespace)
    told = reported(namespace["divide"], capsys)
    assert told.startswith("Traceback") and "ZeroDivisionError" in told
