"""Tracebacks show the user's code, and can be sent from one process to another."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError
from itwinai.launchers.worker_failure import Failure
from itwinai.tracebacks import frames_of, hides_framework_frames, traceback_of
from tests.support.cases import Regression, loader, make_trainer


def caught(function: Any, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(Exception) as raised:
        function(*args, **kwargs)
    return raised.value


def names(error: BaseException) -> list[str]:
    """Return the functions of a traceback, without those of this file that call and catch."""
    found = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return [name for name in found if name != "caught"]


class WrongShape(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.Linear(3, 1)(batch[0])


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_the_users_line_is_the_last_one(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ITWINAI_FULL_TRACEBACK", raising=False)
    trainer = make_trainer(strategy, 1 if strategy == "auto" else 2, max_epochs=1)
    error = caught(trainer.fit, WrongShape(), loader(8))
    assert names(error) == ["training_step"]
    shown = "".join(traceback.format_exception(error))
    assert shown.index("return nn.Linear(3, 1)(batch[0])") < shown.index("RuntimeError") and "F.linear" not in shown
    assert "frames of libraries are hidden; ITWINAI_FULL_TRACEBACK=1 shows them]" in shown


class NotScalar(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[0] * next(self.parameters()).sum()


class Detached(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).detach()


class Refusing(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.LSTM(2, 1)(batch[0][:, :1])


@pytest.mark.parametrize(
    ("module", "advice"), [(NotScalar, "return one loss"), (Detached, "does not depend on trainable parameters")]
)
def test_a_loss_that_cannot_be_differentiated(module: Any, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ITWINAI_FULL_TRACEBACK", raising=False)
    error = caught(make_trainer("auto", 1, max_epochs=1).fit, module(), loader(8))
    assert advice in error.__notes__[-1]


def test_the_raise_of_a_framework_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ITWINAI_FULL_TRACEBACK", raising=False)
    error = caught(make_trainer("auto", 1, max_epochs=1).fit, Refusing(), loader(8))
    assert names(error) == ["training_step"]


def test_a_class_in_the_place_of_a_model() -> None:
    error = caught(make_trainer("auto", 1, max_epochs=1).fit, Regression, loader(8))
    assert str(error) == "Regression is a class. Pass an instance of it: Regression(...)."


def test_nodes_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    error = caught(make_trainer("ddp", 1, num_nodes=2, max_epochs=1).fit, Regression(), loader(8))
    assert str(error).startswith("num_nodes=2, but MASTER_ADDR and MASTER_PORT are not set")


def test_all_frames_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITWINAI_FULL_TRACEBACK", "1")
    error = caught(make_trainer("ddp", 2, max_epochs=1).fit, WrongShape(), loader(8))
    assert len(names(error)) > 20 and names(error)[-1] == "forward"
    assert error.__notes__ == ["[rank 0]"] or error.__notes__ == ["[rank 1]"]


def test_errors_of_itwinai_say_by_themselves_what_is_wrong() -> None:
    error = caught(ItwinaiTrainer, devices=1, accelerator="cpu", max_restarts=-1)
    assert isinstance(error, ConfigurationError)
    assert names(error) == [] and not getattr(error, "__notes__", [])


def raise_chain() -> None:
    try:
        {}["first"]
    except KeyError as error:
        try:
            raise ValueError("second") from error
        except ValueError:
            raise TypeError("third")  # noqa: B904 - while the second is handled


def test_exceptions_behind_an_exception_are_sent_with_it() -> None:
    error = caught(raise_chain)
    expected = [line for line in traceback.format_exception(error) if "^" not in line]
    sent = Failure.of(1, error).exception()
    shown = "".join(traceback.format_exception(sent))
    assert shown.endswith("[rank 1]\n")
    for told in ("KeyError: 'first'", "direct cause", "ValueError: second", "During handling", "TypeError: third"):
        assert told in shown and any(told in line for line in expected)
    assert shown.index("KeyError") < shown.index("direct cause") < shown.index("ValueError") < shown.index("During")


def test_a_traceback_made_of_lines_is_the_traceback() -> None:
    error = caught(raise_chain)
    again = traceback_of(frames_of(error.__traceback__))
    plain = [(one.filename, one.lineno, one.name, one.line) for one in traceback.extract_tb(error.__traceback__)]
    assert [(one.filename, one.lineno, one.name, one.line) for one in traceback.extract_tb(again)] == plain
    assert "^" not in "".join(traceback.format_tb(again))  # whose columns would be those of another line


def test_a_note_is_added_once() -> None:
    @hides_framework_frames
    def inner() -> Any:
        return nn.Linear(3, 1)(torch.zeros(2, 8))

    error = caught(hides_framework_frames(inner))
    assert names(error) == ["inner"] and len(error.__notes__) == 1


def installed(folder: Path, name: str, source: str) -> Any:
    """Return a module of a package that is installed in a folder."""
    file = folder / "site-packages" / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    scope: dict[str, Any] = {"__name__": name}
    exec(compile(source, str(file), "exec"), scope)
    return scope


def test_libraries_below_the_users_line_are_left_out(tmp_path: Path) -> None:
    library = installed(tmp_path, "a_library", "def inner():\n    return {}[1]\n\n\ndef read():\n    return inner()\n")

    def prepare() -> Any:
        return library["read"]()

    assert names(caught(hides_framework_frames(prepare))) == ["prepare"]


class InstalledModule(Regression):
    """Stands for a module of an installed package: its step is called by a framework, and calls its own package."""


def test_a_module_may_be_installed(tmp_path: Path) -> None:
    source = "def helper():\n    return {}[1]\n\n\ndef training_step(self, batch, batch_idx):\n    return helper()\n"
    InstalledModule.training_step = installed(tmp_path, "a_model", source)["training_step"]  # type: ignore[method-assign]
    error = caught(make_trainer("auto", 1, max_epochs=1).fit, InstalledModule(), loader(8))
    assert names(error) == ["training_step", "helper"]
