"""What Lightning's trainer is given and what a run leaves on it: callbacks, metrics, loops, the module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops import _Loop
from lightning.pytorch.plugins import _PLUGIN_INPUT
from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.argparse import _parse_env_variables
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


# What the arguments `plugins` and `precision` of Lightning's Trainer take.
PluginInput = _PLUGIN_INPUT

PrecisionInput = _PRECISION_INPUT


class MisconfiguredTrainerError(ConfigurationError, MisconfigurationException):
    """A `ConfigurationError` that code written for Lightning catches as its `MisconfigurationException`."""


def trainer_arguments_from_environment() -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that environment variables such as PL_TRAINER_DEVICES give."""
    from lightning.pytorch.trainer.trainer import Trainer

    return vars(_parse_env_variables(Trainer))


def collect_rng_states(include_cuda: bool = True) -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's global random number generators."""
    return _collect_rng_states(include_cuda=include_cuda)


def set_rng_states(states: dict[str, Any]) -> None:
    """Set the global random number generators to states from `collect_rng_states`."""
    _set_rng_states(dict(states))


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks, Lightning's own included."""
    return vars(trainer)["callbacks"]  # an attribute that Lightning does not declare


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Let a trainer have these callbacks, and no others."""
    vars(trainer)["callbacks"] = callbacks


class CallbackConnector(_CallbackConnector):
    """Lightning's connector of callbacks, which tells which the module has brought.

    Args:
        trainer: the trainer.
        stock: the connector that it takes the place of.
    """

    trainer: Trainer

    def __init__(self, trainer: Trainer, stock: _CallbackConnector) -> None:
        super().__init__(trainer)
        vars(self).update(vars(stock))

    def joined(self, brought: list[Callback]) -> None:
        """Act upon callbacks that the module's ``configure_callbacks`` has brought; in each worker, before any hook."""

    def _attach_model_callbacks(self) -> None:
        before = {id(callback) for callback in callbacks(self.trainer)}
        super()._attach_model_callbacks()
        self.joined([callback for callback in callbacks(self.trainer) if id(callback) not in before])


def replace_callback_connector(trainer: Trainer, make: Callable[[Trainer, Any], CallbackConnector]) -> None:
    """Let another connector attach the module's callbacks."""
    trainer._callback_connector = make(trainer, trainer._callback_connector)


def attributes(trainer: Trainer) -> dict[str, Any]:
    """Return what callbacks and scripts set on a trainer: its attributes, its parts left out."""
    parts = ("callbacks", "datamodule", "state", "should_stop", "report_failure")
    return {
        name: value
        for name, value in vars(trainer).items()
        if not name.startswith("_")
        and name not in parts
        and type(value).__module__.partition(".")[0] not in ("lightning", "pytorch_lightning", "itwinai")
    }


def attach(trainer: Trainer, module: LightningModule, datamodule: Any) -> None:
    """Leave a trainer attached to its module and datamodule, as after a local run."""
    trainer.strategy._lightning_module = module
    trainer.strategy.model = module
    module.trainer = trainer
    if datamodule is not None:
        vars(trainer)["datamodule"] = datamodule
        datamodule.trainer = trainer


def datamodule_of(arguments: tuple[Any, ...]) -> LightningDataModule | None:
    """Return the datamodule among the arguments of an entry point of the trainer, if there is one."""
    return next((value for value in arguments if isinstance(value, LightningDataModule)), None)


def module_internals() -> frozenset[str]:
    """Return the attribute names that Lightning and torch keep on a LightningModule for themselves."""
    from lightning.pytorch import LightningModule

    return frozenset(vars(LightningModule())) | {"_trainer", "_fabric", "_jit_internal"}


def replace_hyperparameters(module: LightningModule, parameters: dict[str, Any]) -> None:
    """Let a module have these hyperparameters, as if it had been made with them."""
    module._set_hparams(parameters)
    vars(module)["_hparams_initial"] = copy.deepcopy(module._hparams)


def read_metrics(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return the trainer's three metric dictionaries, on the CPU."""
    connector = trainer._logger_connector
    return {
        name: {
            key: value.detach().cpu() if isinstance(value, Tensor) else value
            for key, value in getattr(connector, f"_{name}").items()
        }
        for name in ("callback_metrics", "logged_metrics", "progress_bar_metrics")
    }


def callback_metric(trainer: Trainer, key: str) -> float:
    """Return the last value that callbacks have read, or NaN; nothing is computed or exchanged."""
    value = trainer._logger_connector._callback_metrics.get(key)
    return float("nan") if value is None else float(value)


def write_metrics(trainer: Trainer, metrics: Mapping[str, dict[str, Any]]) -> None:
    """Set the trainer's metric dictionaries to what `read_metrics` returned."""
    connector = trainer._logger_connector
    for name, values in metrics.items():
        setattr(connector, f"_{name}", values)
    # Otherwise the getters would first ask a loop that never ran here for its results.
    connector.reset_results()


ENTRY_POINT_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def read_loops(trainer: Trainer) -> dict[str, Any]:
    """Return the progress and the limits of all loops."""
    return {
        "states": {name: getattr(trainer, name).state_dict() for name in ENTRY_POINT_LOOPS},
        "fit_loop": {
            "max_batches": trainer.fit_loop.max_batches,
            "max_epochs": trainer.fit_loop.max_epochs,
            "min_epochs": trainer.fit_loop.min_epochs,
        },
    }


def write_loops(trainer: Trainer, loops: Mapping[str, Any]) -> None:
    """Set the progress of all loops to what `read_loops` returned, as if they had just ended here."""
    for name, state in loops["states"].items():
        loop: _Loop = getattr(trainer, name)
        loop.load_state_dict(state)
        forget_loading(loop)  # ended, not interrupted: a second fit() starts at the next epoch
    for name, value in loops["fit_loop"].items():
        setattr(trainer.fit_loop, name, value)


def forget_loading(loop: _Loop) -> None:
    """Let a loop and those in it take what was loaded for what they have run themselves."""
    # Not by the setter of `restarting`: with max_steps the fit loop turns False into True.
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            forget_loading(child)


def is_fitting(module: LightningModule | None) -> bool:
    """Return whether the current entry point of a module's trainer is ``fit``."""
    return module is not None and module.trainer.state.fn == TrainerFn.FITTING


def is_predicting(trainer: Trainer) -> bool:
    """Return whether the trainer's current or last entry point is ``predict``."""
    return trainer.state.fn == TrainerFn.PREDICTING


def mark_interrupted(trainer: Trainer) -> None:
    """Leave a trainer in the state in which an exception leaves it."""
    trainer.state.status = TrainerStatus.INTERRUPTED
    trainer.state.stage = None


def datamodule(trainer: Trainer) -> Any:
    """Return the trainer's datamodule, or None."""
    return vars(trainer).get("datamodule")
