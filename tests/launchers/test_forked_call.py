"""A call is done in a process that has imported torch and Lightning, as if it were done here."""

from __future__ import annotations

import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itwinai.errors import ConfigurationError, WorkerError
from itwinai.launchers.fork_server import ForkServer
from itwinai.launchers.forked_call import ForkedCall
from itwinai.tune.search_target import ConfigTarget
from itwinai.tune.settings import Settings
from itwinai.tune.trial_spec import MODULES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def call(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    with ForkedCall(path, function, *arguments) as forked:
        return forked.result()


def place() -> tuple[str, str | None, bool]:
    return os.getcwd(), os.environ.get("ITWINAI_TEST_VARIABLE"), "itwinai.config.lightning_cli" in sys.modules


def test_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftovers: None) -> None:
    server = ForkServer(MODULES)
    try:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ITWINAI_TEST_VARIABLE", "here")
        assert call(server.path, place) == (str(tmp_path), "here", True)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            call(server.path, operator.truediv, 1, 0)
        with pytest.raises(WorkerError, match="kill ended with exit code -9"):
            call(server.path, kill, signal.SIGKILL)

        space = {"model.optimizer": {"choice": ["sgd", "adamw"]}}
        settings = Settings.from_mapping({"metric": "loss", "space": space})
        (tmp_path / "config.yaml").write_text("model:\n  class_path: tests.support.cases.Regression\n")
        arguments = ["--trainer.max_epochs=3"]
        parsed = call(server.path, ConfigTarget.parsed, ["config.yaml"], arguments, settings)
        assert parsed == ConfigTarget.parsed(["config.yaml"], arguments, settings)
        with pytest.raises(ConfigurationError, match="max_epoch") as raised:
            call(server.path, ConfigTarget.parsed, ["config.yaml"], ["--trainer.max_epoch=3"], settings)
        assert not getattr(raised.value, "__notes__", [])  # no rank: it is not a worker
    finally:
        server.close()


def test_a_call_that_is_not_waited_for_ends_with_its_context(no_leftovers: None) -> None:
    server = ForkServer(("torch",))
    try:
        with ForkedCall(server.path, time.sleep, 600) as forked:
            assert forked._process.pid is not None
        with pytest.raises(TypeError, match="pickle"):
            ForkedCall(server.path, call, threading.Lock())
    finally:
        server.close()


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)
