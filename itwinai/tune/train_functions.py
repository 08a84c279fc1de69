"""What trains in a trial's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from itwinai.errors import ConfigurationError
from itwinai.trials.session import TrialSession
from itwinai.tune.trial_config import BaseConfig


@dataclass(frozen=True)
class ConfigFit:
    """A fit that a config describes.

    Attributes:
        config: the whole config.
        folder: of the trial.
    """

    config: Mapping[str, Any]
    folder: str

    def __call__(self, session: TrialSession) -> None:
        """Build trainer, model and data, and train."""
        from itwinai.config.lightning_cli import command_line

        Path(self.folder, "config.yaml").write_text(yaml.safe_dump(dict(self.config), sort_keys=False))
        try:
            cli = command_line(self.config, run=False, save_config_callback=None)
        except ConfigurationError as error:
            raise ConfigurationError(f"the config of this trial cannot be built: {error}") from error
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=session.resume_path)


@dataclass(frozen=True)
class ConfigFits:
    """Makes of what was drawn the fit that a trial is.

    Attributes:
        base: the user's config, and how trials differ from it.
        active: returns the parameters that hold of those that were drawn.
        logger_for: returns ``trainer.logger`` for the trial's parameters, name, folder and checkpoint to resume from.
    """

    base: BaseConfig
    active: Callable[[Mapping[str, Any]], dict[str, Any]]
    logger_for: Callable[[Mapping[str, Any], str, str, str | None], Any]

    def __call__(self, drawn: Mapping[str, Any], name: str, folder: str, resume_path: str | None) -> ConfigFit:
        """Return the fit."""
        parameters = self.active(drawn)
        config = self.base.of_trial(parameters, folder, self.logger_for(parameters, name, folder, resume_path))
        return ConfigFit(config, folder)


@dataclass(frozen=True)
class FunctionCall:
    """A function of the user's own.

    Attributes:
        function: it gets what was drawn.
        parameters: what was drawn.
    """

    function: Callable[[dict[str, Any]], Any]
    parameters: Mapping[str, Any]

    def __call__(self, session: TrialSession) -> None:
        """Call the function."""
        self.function(dict(self.parameters))


@dataclass(frozen=True)
class FunctionCalls:
    """Makes of what was drawn the call of the user's function that a trial is.

    Attributes:
        function: the user's.
        active: returns the parameters that hold of those that were drawn.
    """

    function: Callable[[dict[str, Any]], Any]
    active: Callable[[Mapping[str, Any]], dict[str, Any]]

    def __call__(self, drawn: Mapping[str, Any], name: str, folder: str, resume_path: str | None) -> FunctionCall:
        """Return the call."""
        return FunctionCall(self.function, self.active(drawn))
