"""Built-in steps: commands of itwinai, run from a config with overrides, in the folder of the step."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from itwinai.config.source import given_by
from itwinai.errors import ConfigurationError, PipelineError
from itwinai.pipelines.outputs import OutputFolder
from itwinai.pipelines.steps_file import flag_of
from itwinai.slurm.result import RESULT, read_result

CONFIG = "config.yaml"
"""The config that the command runs, in the folder of the step."""

_LOGGERS_WITH_FOLDER = ("CSVLogger", "TensorBoardLogger", "MLFlowLogger", "MLflowLogger", "WandbLogger", "JSONLLogger")


class Trained(NamedTuple):
    """What `fit` returns.

    Attributes:
        checkpoint: the best checkpoint by the monitored metric; the last one where none is monitored.
        metrics: logged last, by name.
        config: with the overrides, for `test` and `predict`.
        folder: of checkpoints and logs.
    """

    checkpoint: Path
    metrics: dict[str, float]
    config: Path
    folder: Path


class Evaluated(NamedTuple):
    """What `validate` and `test` return.

    Attributes:
        metrics: by name.
        file: the metrics as JSON.
    """

    metrics: dict[str, float]
    file: Path


class Searched(NamedTuple):
    """What `tune` returns.

    Attributes:
        config: of the best trial, for `fit`.
        parameters: of the best trial.
        metrics: its objective.
        folder: of the search.
    """

    config: Path
    parameters: dict[str, Any]
    metrics: dict[str, float]
    folder: Path


class Benchmarked(NamedTuple):
    """What `benchmark` returns.

    Attributes:
        folder: of the benchmark.
        report: the page.
    """

    folder: Path
    report: Path


class Command:
    """A command with a config.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        overrides: values by path in the config, as ``{"trainer.max_epochs": 5}``.
        arguments: further flags of the command.
    """

    command = ""
    resumes = False

    def __init__(
        self,
        config: str | list[str],
        overrides: dict[str, Any] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        self.files = [config] if isinstance(config, str) else list(config)
        self.overrides = dict(overrides or {})
        self.arguments = list(arguments or [])

    def resolved(self) -> dict[str, Any]:
        """Return the config with the overrides in it.

        Raises:
            ConfigurationError: a file is missing or malformed.
        """
        flags = [flag_of(path, value) for path, value in _flat(self.overrides)]
        words = [word for file in self.files for word in ("-c", file)]
        plain: dict[str, Any] = given_by([*words, *flags]).plain()
        plain.pop("slurm", None)  # of other jobs than this
        if isinstance(plain.get("trainer"), dict):
            plain["trainer"].pop("default_root_dir", None)  # it is the step's folder
        return plain

    def _write_config(self, folder: Path, config: Mapping[str, Any]) -> Path:
        import yaml

        path = folder / CONFIG
        path.touch(mode=0o600)  # it may hold secrets
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False, width=100), encoding="utf-8")
        return path

    def _run(self, folder: Path, config: Mapping[str, Any], *flags: str) -> dict[str, Any]:
        """Run the command, and return what it says about its result.

        Raises:
            PipelineError: it has failed; what it printed is above.
        """
        path = self._write_config(folder, config)
        result = folder / ".result.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "itwinai.cli.main", self.command, "-c", str(path), *flags, *self.arguments]
        code = _call(command, {**os.environ, RESULT: str(result)})
        if code:
            raise CommandError(_failure(self.command, code), code)
        found = read_result(result, "COMPLETED", code)
        result.unlink(missing_ok=True)
        return {
            "metrics": dict(found.metrics),
            "checkpoint": found.best_checkpoint,
            "parameters": dict(found.best_parameters),
        }


def _call(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, pass on to it the signals that end this process, and return its exit code."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        process = subprocess.Popen(command, env=dict(environment))
        for number in early:
            process.send_signal(number)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(command: str, code: int) -> str:
    if code > 0:
        return f"itwinai {command} failed with exit code {code}; its error is above."
    name = signal.Signals(-code).name
    why = ": mostly because memory was short" if name == "SIGKILL" else ""
    return f"itwinai {command} was ended by {name}{why}. The same command goes on from its last checkpoint."


class CommandError(PipelineError):
    """A command has failed.

    Attributes:
        code: its exit code, negative for a signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Fit(Command):
    """Train; an interrupted training goes on from its newest checkpoint.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        overrides: values by path in the config, as ``{"trainer.max_epochs": 5}``.
        arguments: further flags of `itwinai fit`.
    """

    command = "fit"
    resumes = True

    def run(self, output: OutputFolder) -> Trained:
        """Train in the folder of the step."""
        config = in_folder(self.resolved(), output)
        config.setdefault("trainer", {}).setdefault("resume", "auto")
        found = self._run(output, config)
        checkpoint = Path(found["checkpoint"]) if found["checkpoint"] else _newest(output)
        if checkpoint is None:
            raise PipelineError(
                "itwinai fit has written no checkpoint, which the other steps need. Leave trainer.enable_checkpointing "
                "on."
            )
        return Trained(checkpoint, found["metrics"], output / CONFIG, output)


class Validate(Command):
    """Evaluate on the validation data.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        ckpt: the checkpoint; None for the weights that the model has by itself.
        overrides: values by path in the config.
        arguments: further flags of the command.
    """

    command = "validate"

    def __init__(
        self,
        config: str | list[str],
        ckpt: Path | None = None,
        overrides: dict[str, Any] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        super().__init__(config, overrides, arguments)
        self.ckpt = ckpt

    def run(self, output: OutputFolder) -> Evaluated:
        """Evaluate in the folder of the step."""
        file = output / "metrics.json"
        given = [] if self.ckpt is None else ["--ckpt", str(self.ckpt)]
        found = self._run(output, in_folder(self.resolved(), output), "--output", str(file), *given)
        return Evaluated(found["metrics"], file)


class Test(Validate):
    """Evaluate on the test data.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        ckpt: the checkpoint; None for the weights that the model has by itself.
        overrides: values by path in the config.
        arguments: further flags of the command.
    """

    command = "test"


class Predict(Command):
    """Write predictions to a file; an interrupted prediction goes on.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        ckpt: the checkpoint; ``none`` if the model loads its weights itself.
        output: name of the file, whose ending says its format: .parquet, .zarr, .pt, .safetensors.
        columns: parts of the batches to write too, as for `itwinai predict`.
        split: predict the data of ``test``, ``val`` or ``train``.
        overrides: values by path in the config.
        arguments: further flags of the command.
    """

    command = "predict"
    resumes = True

    def __init__(
        self,
        config: str | list[str],
        ckpt: Path | str,
        output: str = "predictions.parquet",
        columns: str | None = None,
        split: str | None = None,
        overrides: dict[str, Any] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        super().__init__(config, overrides, arguments)
        self.ckpt, self.output, self.columns, self.split = ckpt, output, columns, split

    def run(self, folder: OutputFolder) -> Path:
        """Predict in the folder of the step."""
        file = folder / Path(self.output).name
        flags = ["--ckpt", str(self.ckpt), "--output", str(file)]
        for name in ("columns", "split"):
            if getattr(self, name) is not None:
                flags += [f"--{name}", str(getattr(self, name))]
        self._run(folder, in_folder(self.resolved(), folder), *flags)
        return file


class Tune(Command):
    """Search for good hyperparameters; an interrupted search goes on.

    Args:
        config: files of `itwinai tune`, with a section ``tune``.
        overrides: values by path in the config, as ``{"tune.num_samples": 20}``.
        arguments: further flags of the command.
    """

    command = "tune"
    resumes = True

    def run(self, output: OutputFolder) -> Searched:
        """Search in the folder of the step."""
        config = in_folder(self.resolved(), output)
        config.setdefault("tune", {})["storage"] = str(output)
        name = config["tune"].setdefault("name", "search")
        began = (output / str(name)).is_dir()
        found = self._run(output, config, *(["--resume"] if began else []))
        folder = output / str(name)
        return Searched(folder / "best_config.yaml", found["parameters"], found["metrics"], folder)


class Benchmark(Command):
    """Compare strategies and numbers of workers; an interrupted benchmark goes on.

    Args:
        config: file of `itwinai fit`; several, of which the later ones win.
        strategies: names.
        workers: numbers.
        overrides: values by path in the config.
        arguments: further flags of `itwinai benchmark`.
    """

    command = "benchmark"
    resumes = True

    def __init__(
        self,
        config: str | list[str],
        strategies: list[str],
        workers: list[int],
        overrides: dict[str, Any] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        super().__init__(config, overrides, arguments)
        self.strategies, self.workers = strategies, workers

    def run(self, output: OutputFolder) -> Benchmarked:
        """Measure in the folder of the step."""
        folder = output / "benchmark"
        flags = ["--strategies", ",".join(self.strategies), "--workers", ",".join(map(str, self.workers))]
        flags += ["--folder", str(folder), *(["--resume"] if folder.is_dir() else [])]
        self._run(output, self.resolved(), *flags)
        return Benchmarked(folder, folder / "report.html")


def in_folder(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config whose logs and checkpoints go to a folder.

    ``resume: auto`` looks where checkpoints go. In a folder that is shared with other runs, it would find theirs.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    trainer = changed.setdefault("trainer", {})
    trainer["default_root_dir"] = str(folder)
    for section, key, path in (("logger", "save_dir", folder), ("callbacks", "dirpath", folder / "checkpoints")):
        given = trainer.get(section)
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, dict) or "class_path" not in one:
                continue
            arguments = one.setdefault("init_args", None) or {}
            one["init_args"] = arguments
            has_folder = str(one["class_path"]).rpartition(".")[2] in _LOGGERS_WITH_FOLDER
            if arguments.get(key) is not None or (section == "logger" and has_folder):
                arguments[key] = str(path)
    return changed


def class_paths_in(node: Any) -> Iterator[str]:
    """Yield the classes that a config names."""
    if isinstance(node, Mapping):
        for name, one in node.items():
            if name == "class_path" and isinstance(one, str):
                yield one
            yield from class_paths_in(one)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for one in node:
            yield from class_paths_in(one)


def check_config(command: Command) -> None:
    """Parse the config of a command as the command will, with the types of all arguments; nothing runs.

    Raises:
        ConfigurationError: something in it is wrong.
    """
    from itwinai.config.lightning_cli import parsed

    config = command.resolved()
    for section in ("tune", "benchmark"):
        config.pop(section, None)
    try:
        parsed(config)
    except ConfigurationError as error:
        files = " and ".join(command.files)
        raise ConfigurationError(f"in the config of the step ({files} with overrides): {error}") from None


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield paths and values of overrides, which may be nested; the arguments of a class stay together."""
    for name, value in overrides.items():
        if (
            isinstance(value, dict)
            and "class_path" not in value
            and name.rpartition(".")[2]
            in (*("trainer", "model", "data", "init_args", "tune", "optimizer", "lr_scheduler"),)
        ):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _newest(folder: Path) -> Path | None:
    found = [path for path in folder.rglob("*.ckpt") if not path.name.startswith(".")]
    return max(found, key=lambda path: path.stat().st_mtime_ns) if found else None
