"""What itwinai puts beside Lightning's content of a checkpoint, under one key, so that it resumes exactly.

Everything is made of tensors and plain values, so that ``weights_only=True`` loads it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import lightning
import torch
from torch import nn

from itwinai.checkpoints.naming import MODULE_CLASS, class_name_of, strategy_name_of
from itwinai.checkpoints.portable_file import FORMAT
from itwinai.compat import lightning_checkpoints, lightning_dataloaders
from itwinai.data.loader_state import Position, Resumable
from itwinai.data.rng_state import RandomStates, pack_random_states
from itwinai.errors import CheckpointError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

KEY = "itwinai"
"""The key of our part in the dictionary of a checkpoint."""


StopPoint = Literal["batch", "validation", "iteration", "end of epoch", "epoch"]
"""What of a fit is done: the hooks at the end of a batch; the validation after it; all that follows upon a batch; the
batches of an epoch; all of an epoch."""


@dataclass(frozen=True)
class FitPosition:
    """Where a worker of a fit stands.

    Attributes:
        place: what is done.
        progress: of the loops.
        history: what the loops know of their past beside that.
        random: states of the worker's random number generators.
        begun_with: the same when the training loaders were iterated for this epoch.
        kept: what has been accumulated of logged values and metrics.
    """

    place: StopPoint
    progress: dict[str, Any]
    history: dict[str, Any]
    random: RandomStates
    begun_with: RandomStates | None
    kept: dict[str, Any]


@runtime_checkable
class TracksFitPosition(Protocol):
    """A fit loop that knows where it stands.

    Attributes:
        begun_with: as in `FitPosition`, also in the middle of something.
    """

    begun_with: RandomStates | None

    def fit_position(self) -> FitPosition | None:
        """Return where this worker stands; None in the middle of something."""


@dataclass(frozen=True)
class ItwinaiState:
    """Our part of a checkpoint.

    Attributes:
        format: version of the format.
        strategy: name of the strategy.
        world_size: number of workers.
        parameter_names: names of the parameters of each group of each optimizer. The optimizers' states are keyed by
            numbers, as torch does it; these names say which parameters the numbers stand for.
        random_states: of each rank, as `pack_random_states` gives them.
        positions: of the training loaders; None for a loader that cannot resume in mid-epoch.
        place: what of the fit is done; None in the middle of something.
        progress: as in `FitPosition`.
        history: as in `FitPosition`.
        begun_with: of each rank, as in `FitPosition`.
        kept: of each rank, as in `FitPosition`.
    """

    format: int
    strategy: str
    world_size: int
    parameter_names: list[list[list[str]]]
    random_states: list[RandomStates]
    positions: list[Position | None]
    place: StopPoint | None = None
    progress: dict[str, Any] | None = None
    history: dict[str, Any] | None = None
    begun_with: list[RandomStates | None] | None = None
    kept: list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as a dictionary of tensors and plain values."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}  # asdict would copy every tensor
        positions = [None if position is None else dict(vars(position)) for position in self.positions]
        return {**own, "positions": positions}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> ItwinaiState | None:
        """Return our part of a checkpoint, or None if it has none.

        Raises:
            CheckpointError: it is of another version of the format, or incomplete.
        """
        plain = checkpoint.get(KEY)
        if plain is None:
            return None
        if plain.get("format") != FORMAT:
            raise CheckpointError(
                f"The checkpoint has format {plain.get('format')} of itwinai, and this version reads format {FORMAT}."
            )
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in plain]
        if missing:
            raise CheckpointError(f"The checkpoint lacks {', '.join(missing)} in its part '{KEY}': it is incomplete.")
        positions = [None if position is None else Position(**position) for position in plain["positions"]]
        return cls(**{**plain, "positions": positions})


def section(
    trainer: Trainer, gather: Callable[[Any], list[Any]], parameter_names: list[list[list[str]]] | None
) -> ItwinaiState:
    """Return itwinai's part of a checkpoint; all workers have to call it.

    Args:
        trainer: in a run.
        gather: returns the objects of all workers, by rank.
        parameter_names: as in `ItwinaiState`, if the strategy's optimizers hold other parameters than the module has.
    """
    if parameter_names is None:
        parameter_names = names_of_parameters(trainer.lightning_module, trainer.optimizers)
    loop: Any = trainer.fit_loop
    position = loop.fit_position() if isinstance(loop, TracksFitPosition) else None
    begun = loop.begun_with if isinstance(loop, TracksFitPosition) else None
    own = (
        (pack_random_states(), begun, {}) if position is None else (position.random, position.begun_with, position.kept)
    )
    random_states, begun_with, kept = map(list, zip(*gather(own), strict=True))
    return ItwinaiState(
        format=FORMAT,
        strategy=strategy_name_of(trainer),
        world_size=trainer.world_size,
        parameter_names=parameter_names,
        random_states=random_states,
        positions=[None if sampler is None else sampler.position() for sampler in training_samplers(trainer)],
        place=None if position is None else position.place,
        progress=None if position is None else position.progress,
        history=None if position is None else position.history,
        begun_with=begun_with,
        kept=kept,
    )


def parts_of_workers(
    trainer: Trainer, gather: Callable[[Any], list[Any]], parameter_names: list[list[list[str]]] | None
) -> dict[str, Any]:
    """Return the parts of a checkpoint that only workers have, at the end of a fit; all workers have to call it.

    Args:
        trainer: in a run.
        gather: as in `section`.
        parameter_names: as in `section`.
    """
    precision = trainer.precision_plugin
    state = precision.state_dict()
    return {
        "optimizer_states": [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        **({type(precision).__qualname__: state} if state else {}),
        KEY: section(trainer, gather, parameter_names).plain(),
    }


def training_samplers(trainer: Trainer) -> list[Resumable | None]:
    """Return the sampler of each training loader, or None for a loader whose sampler cannot resume in mid-epoch."""
    samplers = []
    for loader in lightning_dataloaders.training_loaders(trainer):
        found = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
        samplers.append(next((sampler for sampler in found if isinstance(sampler, Resumable)), None))
    return samplers


def names_of_parameters(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> list[list[list[str]]]:
    """Return the names of the parameters of each group of each optimizer; empty for those that are not the module's."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in optimizers
    ]


def match_optimizer_state(
    state: Mapping[str, Any], saved: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return an optimizer's state for an optimizer that has the same parameters in another order, or in other groups.

    Args:
        state: as ``state_dict()`` of torch's optimizers gives it.
        saved: names of the parameters that it belongs to, by group.
        wanted: the same of the optimizer that gets it.

    Raises:
        CheckpointError: a parameter that is wanted has not been saved.
    """
    if [list(group) for group in saved] == [list(group) for group in wanted]:
        return dict(state)
    groups = state["param_groups"]
    numbers = {
        name: number
        for names, group in zip(saved, groups, strict=True)
        for name, number in zip(names, group["params"], strict=True)
    }
    missing = [name for names in wanted for name in names if name not in numbers]
    if missing:
        raise CheckpointError(
            f"The checkpoint holds no optimizer state for {len(missing)} parameters of this run: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. To use the weights alone, load them with "
            "load_from_checkpoint(path, strict=False) and fit without ckpt_path."
        )
    group_of = {name: group for names, group in zip(saved, groups, strict=True) for name in names}
    result: dict[str, Any] = {"state": {}, "param_groups": []}
    number = 0
    for names in wanted:
        kept = dict(group_of[names[0]]) if names else dict(groups[0])
        kept["params"] = list(range(number, number + len(names)))
        result["param_groups"].append(kept)
        for name in names:
            if numbers[name] in state["state"]:
                result["state"][number] = state["state"][numbers[name]]
            number += 1
    return result


def checkpoint_of(module: LightningModule) -> dict[str, Any]:
    """Return the content of a checkpoint with a module's weights and hyperparameters, and no state of a run."""
    content: dict[str, Any] = {
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": module.state_dict(),
        MODULE_CLASS: class_name_of(module),
    }
    if module.hparams:
        content["hparams_name"] = lightning_checkpoints.hyperparameters_name(module)
        content["hyper_parameters"] = dict(module.hparams)
    module.on_save_checkpoint(content)
    return content


def describe(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a checkpoint: plain values that need no loading."""
    ours = checkpoint.get(KEY) or {}
    weights = {name: value for name, value in checkpoint.get("state_dict", {}).items() if torch.is_tensor(value)}
    return {
        "epoch": checkpoint.get("epoch"),
        "global_step": checkpoint.get("global_step"),
        "strategy": ours.get("strategy"),
        "world_size": ours.get("world_size"),
        "tensors": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "bytes_of_weights": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        "resumable": "optimizer_states" in checkpoint,
        "versions": {
            "itwinai": version("itwinai"),
            "lightning": lightning.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
