"""What to change when a run has failed: lines below exceptions that torch, Lightning or Python raise in other words."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from itwinai.compat.lightning_trainer import MisconfiguredTrainerError
from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.tracebacks import add_note, chain

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_ADVICE = {
    "grad can be implicitly created only for scalar outputs": (
        "training_step returned more than one value; return one loss, such as loss.mean()"
    ),
    "does not require grad and does not have a grad_fn": (
        "the loss that training_step returned does not depend on trainable parameters: look for detach(), item(), "
        "torch.no_grad() or frozen layers on its way"
    ),
}
"""What to change in a training step whose loss torch cannot differentiate, by torch's message."""

_LOADER_ADVICE = {
    "batch_size should be a positive integer value": "a batch has at least 1 sample",
    "num_samples should be a positive integer value, but got num_samples=0": (
        "the dataset is empty: look at where it is read, split and filtered"
    ),
    "num_workers option should be non-negative": "0 loads the data in the process that trains",
    "prefetch_factor option could only be specified in multiprocessing": (
        "set num_workers to 1 or more, or leave prefetch_factor out"
    ),
    "persistent_workers option needs num_workers > 0": "set num_workers to 1 or more, or leave persistent_workers out",
}
"""What to change in the arguments of a DataLoader that torch refuses, by torch's message."""

_LOADERS = tuple(f"{stage}_dataloader" for stage in ("train", "val", "test", "predict"))
_UNEQUAL = re.compile(r"stack expects each tensor to be equal size, but got (\[[^]]*\]) at entry 0 and (\[[^]]*\])")
_STEP = re.compile(r"((?:training|validation|test|predict)_step)\(\) missing \d+ required positional arguments?: (.*)")
_NO_DATA = re.compile(r"`((?:train|val|test|predict)_dataloader)` must be implemented")
_HPARAM = re.compile(r"'AttributeDict' object has no attribute '(\w+)'")


def explain(trainer: Trainer, error: Exception) -> None:
    """Add to an exception what to change, where its message is known and does not say so.

    Args:
        trainer: whose run has failed.
        error: what it raised.

    Raises:
        ConfigurationError: in the place of an exception whose traceback has no line of the user.
    """
    text = str(error)
    if isinstance(error, MisconfigurationException) and (found := _NO_DATA.search(text)):
        raise MisconfiguredTrainerError(_no_data(trainer, found[1])) from None
    if isinstance(error, torch.OutOfMemoryError):
        add_note(error, _memory_advice(trainer))
    elif isinstance(error, RuntimeError):
        for message, advice in _ADVICE.items():
            if message in text:
                add_note(error, f"itwinai: {advice}")
        if found := _UNEQUAL.search(text):
            add_note(
                error,
                f"itwinai: samples of {_dataset_of(error)} have different shapes ({found[1]}, {found[2]}) and "
                "cannot be stacked into a batch: cut or pad them in __getitem__, or give the DataLoader a collate_fn",
            )
    elif isinstance(error, ValueError):
        for message, advice in _LOADER_ADVICE.items():
            if message in text:
                add_note(error, f"itwinai: {advice}{_where_set(trainer, text)}")
    elif isinstance(error, TypeError) and (found := _STEP.search(text)):
        _explain_step(trainer, found[1], found[2])
    elif isinstance(error, AttributeError) and (found := _HPARAM.search(text)):
        _explain_hparam(trainer, error, found[1])


def _no_data(trainer: Trainer, loader: str) -> str:
    """Return the message for a run for which nothing gives the data.

    Args:
        trainer: of the run.
        loader: the method that would.
    """
    module, data = _module_of(trainer), getattr(trainer, "datamodule", None)
    name = trainer.state.fn.value if trainer.state.fn else "fit"
    if data is not None:
        others = [other for other in _LOADERS if other != loader and is_overridden(other, data)]
        has = f" (it has {' and '.join(others)})" if others else ""
        return (
            f"trainer.{name} has no data: {type(data).__name__} has no {loader}{has}. Define it there, or pass a "
            f"loader in the place of the datamodule: trainer.{name}(module, loader)."
        )
    return (
        f"trainer.{name} has no data: it got none, and {type(module).__name__} has no {loader}. Pass a loader, "
        f"trainer.{name}(module, loader), or a datamodule, trainer.{name}(module, datamodule=data)."
    )


def _explain_step(trainer: Trainer, step: str, missing: str) -> None:
    module = _module_of(trainer)
    if module is None:
        return
    arguments = ", ".join(inspect.signature(getattr(module, step)).parameters)
    raise ConfigurationError(
        f"{type(module).__name__}.{step}({arguments}) is called with (batch, batch_idx), and with dataloader_idx where "
        f"there are several loaders: nothing gives it {missing}. Take it from the batch, or from self."
    ) from None


def _explain_hparam(trainer: Trainer, error: AttributeError, name: str) -> None:
    module = _module_of(trainer)
    for one in chain(error):
        one.__suppress_context__, one.__cause__ = True, None  # a KeyError of the same name
    known = {} if module is None else dict(getattr(module, "hparams", {}))
    why = (
        f"it has {', '.join(map(str, known))}.{did_you_mean(name, map(str, known))}"
        if known
        else "it is empty: self.save_hyperparameters() in __init__ fills it"
    )
    add_note(error, f"itwinai: self.hparams has no '{name}'; {why}")


def _where_set(trainer: Trainer, refused: str) -> str:
    """Return where the argument of a DataLoader that torch refuses comes from, if an attribute of its name has it."""
    name = refused.partition(" ")[0]
    for section, one in (("data", getattr(trainer, "datamodule", None)), ("model", _module_of(trainer))):
        value = getattr(one, name, getattr(getattr(one, "hparams", None), name, None))
        if value is not None:
            return f"; {name} of {type(one).__name__} is {value!r}: in a config, that is {section}.{name}"
    return ""


def _module_of(trainer: Trainer) -> Any:
    return trainer.lightning_module


def _dataset_of(error: BaseException) -> str:
    """Return the name of the dataset from which a batch was being made, if its frame is there."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "fetch" and "self" in trace.tb_frame.f_locals:
            return type(trace.tb_frame.f_locals["self"].dataset).__name__
        trace = trace.tb_next
    return "the dataset"


def _memory_advice(trainer: Trainer) -> str:
    """Return what to change when the memory of a GPU was not enough."""
    windows: int = trainer.accumulate_grad_batches
    ways = [f"halve batch_size and set accumulate_grad_batches={2 * windows}, which leaves the global batch as it is"]
    if trainer.precision == "32-true":
        ways.append("precision='bf16-mixed' keeps activations in half of the memory")
    if trainer.world_size > 1 and getattr(trainer.strategy, "strategy_name", "") != "deepspeed":
        ways.append("strategy='deepspeed_stage_2' or '_3' shards optimizer, gradients and weights across the workers")
    return f"itwinai: to need less memory: {'; '.join(ways)}"
