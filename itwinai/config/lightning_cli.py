"""A run from a config file: Lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from itwinai.callbacks import PredictionWriter
from itwinai.checkpoints.discovery import UNNAMED
from itwinai.compat import lightning_cli
from itwinai.compat import noise as compat_noise
from itwinai.compat.jsonargparse import parser_arguments
from itwinai.config.errors import failure_in_class, mistake_in_flags, mistake_in_values, no_data, no_model, place_of
from itwinai.config.plugin_callbacks import import_named_callbacks
from itwinai.config.source import (
    CLASS_SECTIONS,
    Given,
    as_given,
    check_config_files,
    classes_first,
    expand_short_flags,
    flags_of,
    given_by,
)
from itwinai.errors import ConfigurationError, ItwinaiError
from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import document_text
from itwinai.launchers.ray_init import StartingRay
from itwinai.loggers.registry import check_logger_names
from itwinai.strategies.ray import RayStrategy
from itwinai.strategies.registry import check_strategy_name
from itwinai.tracebacks import shows_all_frames
from itwinai.trainer import ItwinaiTrainer, check_devices
from itwinai.warn import warn_user

_VERSION = tuple(int(part) for part in jsonargparse.__version__.split(".")[:2])

OUTPUT_ARGUMENTS: Mapping[str, tuple[Any, str, tuple[str, ...]]] = {
    "output": (
        str | None,
        "file to write: predictions as .parquet, .zarr, .pt or .safetensors; metrics as .json",
        ("validate", "test", "predict"),
    ),
    "columns": (str | list[str] | dict[str, Any] | None, "parts of the batches to write: ids...", ("predict",)),
    "split": (Literal["train", "val", "test"] | None, "data to predict instead of its own", ("predict",)),
    "overwrite": (bool, "replace an output that exists", ("predict",)),
    "batch_size": (int | str | None, "batch size of the loaders; auto for the fastest that fits", ("predict",)),
}
"""Arguments of subcommands that write a file: type, help, and which subcommands have it."""

PREDICTIONS_LOST = """\
itwinai: WARNING: nothing keeps the predictions of this run: add --output predictions.parquet (or .zarr, .pt,
.safetensors), unless your predict_step writes them itself.
"""
_ELSE = {
    "test": ("val_dataloader", ", or evaluate the validation data: itwinai validate"),
    "validate": ("test_dataloader", ", or evaluate the test data: itwinai test"),
}
_OF_SUBCOMMANDS = ("ckpt_path", "weights_only", "verbose", "return_predictions", *OUTPUT_ARGUMENTS)


class ConfiguredCLI(lightning_cli.CheckpointAwareCLI):
    """Lightning's command line, whose config may have sections for `itwinai tune`, `slurm` and `benchmark`.

    A mistake in the config or the flags is a `ConfigurationError` that says where it is and what is accepted there.

    Args:
        *args: those of LightningCLI.
        starting_ray: Ray that is being started, for a trainer whose workers are Ray's.
        **kwargs: those of LightningCLI.

    Attributes:
        given: what config files and flags say, each value with its place.
    """

    given: Given

    def __init__(self, *args: Any, starting_ray: StartingRay | None = None, **kwargs: Any) -> None:
        self.starting_ray = starting_ray
        given = kwargs.get("args")
        if isinstance(given, list) and given and given[0] in self.subcommands():
            self.used_subcommand = given[0]
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the sections be there; a run leaves them aside."""
        parser.add_argument("--tune", type=dict | None, default=None, help="what `itwinai tune` is to search for")
        parser.add_argument("--slurm", type=dict | None, default=None, help="what `itwinai slurm` asks for")
        parser.add_argument("--benchmark", type=dict | None, default=None, help="what `itwinai benchmark` compares")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; short flags are accepted, and classes for sections of the config that name none."""
        arguments = args
        if isinstance(args, Mapping):
            self.given = as_given(args)
            import_named_callbacks(self.given)
        else:
            check_config_files(args)
            self.given = given_by(classes_first(args))
            arguments = classes_first(expand_short_flags(args))
            _import_named_classes(args)
            import_named_callbacks(self.given, args)
        try:
            super().parse_arguments(parser, arguments)
        except ArgumentError as error:
            raise ConfigurationError(self._error_message(parser, args, error)) from None
        self._check_trainer()

    def _check_trainer(self) -> None:
        """Raise an error for names and numbers of the trainer that are known to be wrong before anything is created."""
        config = self.config.get(str(self.config.get("subcommand")), self.config)["trainer"]
        strategy, logger = config.get("strategy"), config.get("logger")
        try:
            check_devices(config.get("accelerator"), config.get("devices"), strategy)
            if isinstance(strategy, str):
                check_strategy_name(strategy)
            names = logger if isinstance(logger, list) else [logger]
            if logger and all(isinstance(name, str) for name in names):
                check_logger_names(logger)
        except ConfigurationError as error:
            raise self._placed(error) from None

    def _placed(self, error: ConfigurationError) -> ConfigurationError:
        """Return an error with the place of the argument that it is about."""
        place = place_of(self.given, error.argument) if error.argument else ""
        return ConfigurationError(f"{place}{error}", argument=error.argument) if place else error

    def _error_message(self, parser: LightningArgumentParser, args: Any, error: ArgumentError) -> str:
        """Return what is wrong with the arguments, of which the parser says something."""
        command = None
        flags: Sequence[str] = []
        if not isinstance(args, Mapping):
            command = args[0] if args and args[0] in self.subcommands() else None
            flags = args[1:] if command else args
        known = parser_arguments(parser, command)
        message = mistake_in_flags(flags, known, self.subcommands()) or mistake_in_values(self.given, known)
        model = self.given.find("model")
        if message is None and (model is None or model.value is None):
            message = no_model(flags)
        if message is None:
            message = parser_message(error)
        return message

    def before_instantiate_classes(self) -> None:
        """Warn about arguments of the model that are not used, as Lightning uses those of the checkpoint.

        Raises:
            ConfigurationError: the checkpoint is of another class.
        """
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        self._check_class(config)
        given, used = self.given.find("model.init_args"), config.get("model")
        if not config.get("ckpt_path") or given is None or not isinstance(given.value, dict) or not used:
            return
        of_checkpoint = {**used.get("dict_kwargs", {}), **used.get("init_args", {})}
        for name, one in given.value.items():
            if name in of_checkpoint and of_checkpoint[name] != one.plain():
                warn_user(
                    f"{one.at}: {name}={one.plain()!r} is not used: the model is created as in the checkpoint "
                    f"{config['ckpt_path']}, with {name}={of_checkpoint[name]!r}."
                )

    def _check_class(self, config: Mapping[str, Any]) -> None:
        given, used = self.given.find("model.class_path"), (config.get("model") or {}).get("class_path")
        if not config.get("ckpt_path") or given is None or used is None:
            return
        if str(given.value).rpartition(".")[2] != used.rpartition(".")[2]:
            raise ConfigurationError(
                f"{given.at}: the model is {given.value}, and the checkpoint {config['ckpt_path']} is one of {used}. "
                f"Name a checkpoint of {given.value}, or this class: --model {used}. In Python, "
                f"Predictor.load(path, {str(given.value).rpartition('.')[2]}) loads it into another class."
            )

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Let what writes a file know where."""
        for name, (kind, text, commands) in OUTPUT_ARGUMENTS.items():
            if subcommand in commands:
                parser.add_argument(f"--{name}", type=kind, default=False if kind is bool else None, help=text)

    def _option(self, name: str) -> Any:
        """Return an argument of the subcommand."""
        return self.config[str(self.config["subcommand"])].get(name)

    def before_fit(self) -> None:
        """Check that there is data to train on."""
        self._check_data("train_dataloader")

    def before_validate(self) -> None:
        """Check that there is data to validate on."""
        self._check_data("val_dataloader")
        self._choose_weights()

    def before_test(self) -> None:
        """Check that there is data to test on."""
        self._check_data("test_dataloader")
        self._choose_weights()

    def _choose_weights(self) -> None:
        """Let the newest checkpoint of this config's runs be used where none is named; ``none`` is none at all."""
        used = self.config_init[str(self.config["subcommand"])]
        used["ckpt_path"] = {"none": None, None: UNNAMED}.get(used.get("ckpt_path"), used.get("ckpt_path"))

    def _check_data(self, loader: str) -> None:
        if self.datamodule is None and not is_overridden(loader, self.model):
            raise ConfigurationError(no_data(type(self.model), loader))
        owners = [one for one in (self.datamodule, self.model) if one is not None]
        if loader != "predict_dataloader" and not any(is_overridden(loader, one) for one in owners):
            command = str(self.config["subcommand"])
            other, hint = _ELSE.get(command, ("", ""))
            hint = hint if other and any(is_overridden(other, one) for one in owners) else ""
            raise ConfigurationError(f"itwinai {command}: {type(owners[0]).__name__} has no {loader}. Write one{hint}.")

    def after_validate(self) -> None:
        """Write the metrics."""
        self._write_results()

    def after_test(self) -> None:
        """Write the metrics."""
        self._write_results()

    def _write_results(self) -> None:
        output = self._option("output")
        if output is None or not self.trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        results = {
            "command": self.config["subcommand"],
            "metrics": metrics,
            "checkpoint": self._option("ckpt_path"),
            "model": type(self.model).__name__,
            "workers": self.trainer.world_size,
            "itwinai": version("itwinai"),
        }
        write_whole(Path(output), document_text(results))
        _say(f"itwinai: {', '.join(metrics)} written to {output}")

    def before_predict(self) -> None:
        """Check that there is data; write the predictions, or say before a long run that they will be lost."""
        self._check_data("predict_dataloader")
        if self._option("output") is not None or self._option("ckpt_path") == "none":
            self._choose_weights()
        if (split := self._option("split")) is not None:
            self._predict_split(split)
        elif not any(is_overridden("predict_dataloader", one) for one in (self.model, self.datamodule) if one):
            raise ConfigurationError(
                f"{type(self.datamodule).__name__} has no predict_dataloader. Write one, or predict the data of "
                "another stage: --split test (or val, train)."
            )
        if (output := self._option("output")) is not None:
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            columns, overwrite, batch_size = map(self._option, ("columns", "overwrite", "batch_size"))
            callbacks.append(writer := PredictionWriter(output, columns or (), overwrite, batch_size))
            writer.check_output()
        elif not _keeps_predictions(self.trainer, self.model):
            _say(PREDICTIONS_LOST)

    def _predict_split(self, split: str) -> None:
        """Let the data of another stage be predicted."""
        owner: Any = self.model if self.datamodule is None else self.datamodule
        loader = f"{split}_dataloader"
        if not is_overridden(loader, owner):
            raise ConfigurationError(f"--split {split}: {type(owner).__name__} has no {loader}.")
        vars(owner)["predict_dataloader"] = getattr(owner, loader)
        if self.datamodule is not None:
            stage = {"train": "fit", "val": "validate"}.get(split, split)
            vars(owner)["setup"] = partial(_setup_as, owner.setup, stage)

    def after_predict(self) -> None:
        """Say it again, in the last lines."""
        if not _keeps_predictions(self.trainer, self.model):
            _say(PREDICTIONS_LOST.replace("keeps the predictions", "has kept the predictions"))

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            ConfigurationError: one of them refuses what the config says, or its ``__init__`` fails.
        """
        try:
            super().instantiate_classes()
        except ConfigurationError as error:
            if error.__cause__ is not None:
                raise
            raise self._placed(error) from None
        except (ItwinaiError, KeyboardInterrupt):
            raise
        except Exception as error:
            if shows_all_frames():
                raise
            message = failure_in_class(error, self.given)
            if message is None:
                raise
            raise ConfigurationError(message) from None
        if self.starting_ray is not None and isinstance(self.trainer.strategy, RayStrategy):
            self.trainer.strategy.connect_by(self.starting_ray)


def _setup_as(setup: Callable[[str], None], other: str, stage: str) -> None:
    """Prepare the data of another stage than the one that begins."""
    setup(other)


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _keeps_predictions(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether a callback or the module does something with predictions."""
    hooks = ("on_predict_batch_end", "on_predict_epoch_end", "on_predict_end")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    own = [one for one in callbacks if not type(one).__module__.startswith(("lightning.", "itwinai."))]
    return any(isinstance(one, BasePredictionWriter) for one in callbacks) or any(
        getattr(type(one), hook) is not getattr(base, hook)
        for one, base in [*((one, Callback) for one in own), (module, LightningModule)]
        for hook in hooks
    )


def _import_named_classes(arguments: Sequence[str]) -> None:
    """Import the modules of classes that flags name, so that the config may have the short names of these classes."""
    for flag, value in flags_of(arguments):
        if flag.removeprefix("--") in CLASS_SECTIONS and value and "." in value:
            with suppress(ImportError):  # the parser says so
                import_module(value.rpartition(".")[0])


class ParsedCLI(ConfiguredCLI):
    """Lightning's command line that only parses: nothing is built, and nothing is seeded.

    Attributes:
        config: the whole config, without the seed.
        seed: what the config says of ``seed_everything``.
    """

    seed: int | bool | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the arguments of Lightning's subcommands too, as they are in the configs that runs leave behind."""
        super().add_arguments_to_parser(parser)
        for name in _OF_SUBCOMMANDS:
            parser.add_argument(f"--{name}", type=Any, default=None, help="of a run")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and take out the seed."""
        super().parse_arguments(parser, args)
        self.seed, self.config["seed_everything"] = self.config["seed_everything"], False

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def as_dict(self, *, without_defaults: bool = False) -> dict[str, Any]:
        """Return the config as plain values, as a file would have it, without the sections that other commands read.

        Args:
            without_defaults: leave out what a run has anyway.
        """
        if (path := self.config.get("ckpt_path")) is not None:
            raise ConfigurationError(
                f"ckpt_path is {path!r}, but here every run starts with the initial weights of the model. Remove it.",
                argument="ckpt_path",
            )
        # None is a value too: one that has it may be varied, and one that was set to it differs from its default.
        if _VERSION >= (4, 49):
            options = {"skip_unset": False, "skip_default": without_defaults}
            values = yaml.safe_load(self.parser.dump(self.config, skip_validation=True, **options))
        else:  # there `skip_default` fails where a default is None
            values, defaults = (
                yaml.safe_load(self.parser.dump(config, skip_none=False, skip_validation=True))
                for config in (self.config, self.parser.get_defaults())
            )
            values = different(values, defaults) if without_defaults else values
        plain: dict[str, Any] = {**values, "seed_everything": self.seed}
        for name in ("tune", "slurm", "benchmark", *_OF_SUBCOMMANDS):
            plain.pop(name, None)
        return plain

    def check(self, config: Mapping[str, Any], what: str) -> None:
        """Raise an error if a config is wrong.

        Args:
            config: plain values.
            what: is wrong with it, to say so.

        Raises:
            ConfigurationError: it is wrong.
        """
        try:
            self.parser.parse_object(copy.deepcopy(dict(config)))
        except ArgumentError as error:
            message = mistake_in_values(as_given(config), parser_arguments(self.parser)) or parser_message(error)
            raise ConfigurationError(f"{what}, which does not fit there: {message}") from None


class _UnparsedCLI(ParsedCLI):
    """Lightning's command line of which only the parser is wanted."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Take nothing."""
        self.given = as_given({})
        self.config = jsonargparse.Namespace(seed_everything=False)


def config_parser() -> LightningArgumentParser:
    """Return the parser of configs."""
    return _make(_UnparsedCLI, {}, run=False, save_config_callback=None).parser


def different(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config that differ from the defaults; those of classes as a whole."""
    left: dict[str, Any] = {}
    for name, value in config.items():
        default = defaults.get(name)
        if name in defaults and value == default:
            continue
        sections = isinstance(value, dict) and isinstance(default, dict) and "class_path" not in value
        left[name] = different(value, default) if sections else value  # type: ignore[arg-type]
    return left


def parser_message(error: Exception) -> str:
    """Return the parser's message, without its list of all valid values."""
    lines = [line for line in str(error).splitlines() if line.strip() and "NoneType" not in line]
    lines = [
        line for line in lines if not line.strip().startswith(("Given value", "Subtypes:", "Errors:", "- Expected"))
    ]
    deepest = max(lines, key=lambda line: len(line) - len(line.lstrip(" -")), default=str(error))
    return deepest.strip(" -").replace("<class '", "").replace("'>", "")


def command_line(
    arguments: Sequence[str] | Mapping[str, Any], starting_ray: StartingRay | None = None, **options: Any
) -> LightningCLI:
    """Return Lightning's command line, having done what the arguments say.

    Args:
        arguments: the command line; or a config, whose values are plain.
        starting_ray: Ray that is being started, for a trainer whose workers are Ray's.
        **options: further arguments of LightningCLI; ``run=False`` builds trainer, model and data, and runs nothing.

    Raises:
        ConfigurationError: the arguments or the config are wrong.
    """
    return _make(ConfiguredCLI, arguments, starting_ray=starting_ray, **options)


def parsed(arguments: Sequence[str] | Mapping[str, Any], **options: Any) -> ParsedCLI:
    """Return what `command_line` would build, only parsed.

    Raises:
        ConfigurationError: the arguments or the config are wrong.
    """
    return _make(ParsedCLI, arguments, run=False, save_config_callback=None, **options)


CLI = TypeVar("CLI", bound=LightningCLI)


def _make(kind: type[CLI], arguments: Sequence[str] | Mapping[str, Any], **options: Any) -> CLI:
    compat_noise.silence_known_noise()
    # It warns of a command line beside the arguments; here they are given whole.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    given: Any = dict(arguments) if isinstance(arguments, Mapping) else list(arguments)
    # An abbreviated flag is a mistake as an abbreviated key of a file is: it may mean another one tomorrow.
    strict = {"exit_on_error": False, "allow_abbrev": False}
    kwargs = {**strict, **options.pop("parser_kwargs", {})}
    for command in kind.subcommands():
        kwargs[command] = {**strict, **kwargs.get(command, {})}
    return kind(
        trainer_class=ItwinaiTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=given,
        parser_kwargs=kwargs,
        **options,
    )
