"""What `itwinai.compat.jsonargparse` takes for granted about private names."""

from __future__ import annotations

import argparse

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from itwinai.compat import jsonargparse as compat_jsonargparse


class Listed:
    """A class that a command line may be asked for."""


class Concealed(compat_jsonargparse.unlisted(Listed)):  # type: ignore[misc]
    """A subclass that its short names do not mean."""


def test_short_names_do_not_mean_unlisted_classes() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--one", type=Listed)
    assert parser.parse_args(["--one=Listed"]).one.class_path.endswith(".Listed")
    with pytest.raises(ArgumentError):
        parser.parse_args(["--one=Concealed"])
    given = parser.parse_args([f"--one={__name__}.Concealed"])
    assert type(compat_jsonargparse.instantiate(parser, given).one) is Concealed


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (Checkpoint, "ModelCheckpoint"),
        (Strategy, "DDPStrategy"),
        (Strategy, "DeepSpeedStrategy"),
        (Logger, "MLFlowLogger"),
    ],
)
def test_short_names_mean_lightnings_classes(base: type, name: str) -> None:
    import itwinai.callbacks.model_checkpoint
    import itwinai.loggers.mlflow
    import itwinai.strategies.ddp
    import itwinai.strategies.deepspeed  # noqa: F401 - with them imported

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--one", type=base)
    assert parser.parse_args([f"--one={name}"]).one.class_path.startswith("lightning.pytorch.")


def test_arguments_of_a_parser_and_of_its_subcommand() -> None:
    parser, below = ArgumentParser(exit_on_error=False), ArgumentParser(exit_on_error=False)
    parser.add_argument("--size", type=int | None, default=3)
    below.add_argument("--name", type=str, required=True)
    parser.add_subcommands().add_subcommand("run", below)
    size = {one.name: one for one in compat_jsonargparse.parser_arguments(parser)}["size"]
    assert (size.flags, size.type, size.required, size.default, size.takes_value) == (
        ("--size",),
        int | None,
        False,
        3,
        True,
    )
    found = {one.name: one for one in compat_jsonargparse.parser_arguments(parser, "run")}
    assert found["name"].required and not found["help"].takes_value and "size" not in found


def test_help_subparsers_and_environment_of_a_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = ArgumentParser(exit_on_error=False, env_prefix="MY")
    parser.add_argument("--a.size", type=int, default=3, help="how large")
    (size,) = [one for one in compat_jsonargparse.parser_arguments(parser) if one.name == "a.size"]
    assert size.help == "how large"
    assert compat_jsonargparse.environment_variable(parser, "a.size") is None
    parser.default_env = True
    name = compat_jsonargparse.environment_variable(parser, "a.size")
    assert name == "MY_A__SIZE"
    monkeypatch.setenv(name, "5")
    assert parser.parse_args([]).a.size == 5
    plain = argparse.ArgumentParser()
    plain.add_subparsers().add_parser("run", description="runs")
    found = [one for one in map(compat_jsonargparse.subparsers_of, plain._actions) if one is not None]
    assert [list(one) for one in found] == [["run"]] and found[0]["run"].description == "runs"
