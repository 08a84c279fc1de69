"""Secrets stay away from loggers, also where Lightning hands them the hyperparameters of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from itwinai.run_info.redaction import without_secrets

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class GuardedHyperparameters:
    """Takes the place of a logger's ``log_hyperparams``, and leaves secrets out.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters without their secrets."""
        type(self.logger).log_hyperparams(self.logger, without_secrets(params), *args, **kwargs)


def hide_secrets(logger: Logger) -> None:
    """Let a logger get hyperparameters without secrets from now on."""
    logger.log_hyperparams = GuardedHyperparameters(logger)  # type: ignore[method-assign]
