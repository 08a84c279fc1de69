"""The strategy names that one flag chooses from, what each stands for, and what the rest of the package asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

INSTALL = {
    "deepspeed": "pip install 'itwinai[deepspeed]'",
    "horovod": "itwinai install horovod",
    "ray": "pip install 'itwinai[ray]'",
}
"""The command that installs a package which a strategy needs, by its import name."""


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy name, with all that the trainer, the doctor, searches and simulations need to know of it.

    Attributes:
        name: what you write after ``--strategy``.
        class_name: the class in `itwinai.strategies` that it stands for.
        options: the arguments that the class gets.
        packages: import names of the optional packages that it needs.
        zero_stage: how much of the training state is sharded over the workers: ZeRO's stage (Rajbhandari et al., 2020,
            arXiv:1910.02054); 0 for strategies that keep everything on every worker.
        overlaps_backward: whether workers exchange gradients while backward still computes others. itwinai lets
            DeepSpeed's stages 0 and 1 exchange in the optimizer's step.
        uses_ray: whether workers are Ray actors, so that GPUs and CPUs are those of a cluster, not of this machine.
    """

    name: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    zero_stage: int = 0
    overlaps_backward: bool = True
    uses_ray: bool = False

    def make(self) -> Strategy:
        """Make the strategy.

        Raises:
            MissingPackageError: a package that it needs is not installed.
        """
        strategy: Strategy = getattr(import_module("itwinai.strategies"), self.class_name)(**self.options)
        return strategy


def _deepspeed(name: str, stage: int) -> StrategyEntry:
    return StrategyEntry(
        name, "DeepSpeedStrategy", {"stage": stage}, ("deepspeed",), zero_stage=stage, overlaps_backward=stage >= 2
    )


def _ray(name: str, inner: StrategyEntry) -> StrategyEntry:
    return StrategyEntry(
        name,
        "RayStrategy",
        {"strategy": inner.name},
        (*inner.packages, "ray"),
        inner.zero_stage,
        inner.overlaps_backward,
        uses_ray=True,
    )


_DDP = StrategyEntry("ddp", "DDPStrategy")
_DEEPSPEED = _deepspeed("deepspeed", stage=2)
_HOROVOD = StrategyEntry("horovod", "HorovodStrategy", packages=("horovod",))

# To add a strategy, write its class into a file of this folder, name it in `itwinai.strategies`, and add an entry.
_ENTRIES = {
    entry.name: entry
    for entry in (
        _DDP,
        StrategyEntry("ddp_find_unused_parameters_true", "DDPStrategy", {"find_unused_parameters": True}),
        _DEEPSPEED,
        *(_deepspeed(f"deepspeed_stage_{stage}", stage) for stage in range(4)),
        _HOROVOD,
        _ray("ray", _DDP),
        _ray("ray_ddp", _DDP),
        _ray("ray_deepspeed", _DEEPSPEED),
        _ray("ray_horovod", _HOROVOD),
    )
}

STRATEGY_NAMES: tuple[str, ...] = tuple(_ENTRIES)


def find_entry(strategy: object) -> StrategyEntry | None:
    """Return the entry of a strategy; None for those that are Lightning's or your own.

    Args:
        strategy: a name, a section of a config with ``class_path``, or an instance, whose options may be other ones
            than those of the entry.
    """
    if isinstance(strategy, Mapping):
        class_name = str(strategy.get("class_path", "")).rpartition(".")[2]
        return next((entry for entry in _ENTRIES.values() if entry.class_name == class_name), None)
    name = strategy if isinstance(strategy, str) else getattr(strategy, "strategy_name", "")
    return _ENTRIES.get(name.lower())


def uses_ray(strategy: object) -> bool:
    """Return whether the workers of a strategy are Ray actors.

    Args:
        strategy: as for `find_entry`.
    """
    entry = find_entry(strategy)
    return entry is not None and entry.uses_ray


def make_strategy(name: str) -> Strategy | None:
    """Make the strategy of a name.

    Args:
        name: one of `STRATEGY_NAMES`, or a name that lightning knows.

    Returns:
        The strategy, or None for a name that is left to Lightning.

    Raises:
        ConfigurationError: the name is unknown; the message suggests the nearest one.
        MissingPackageError: the package behind the strategy is not installed.
    """
    check_strategy_name(name)
    entry = _ENTRIES.get(name.lower())
    return None if entry is None else entry.make()


def check_strategy_name(name: str) -> None:
    """Raise an error for a name that neither this package nor lightning knows.

    Raises:
        ConfigurationError: the name is unknown; the message suggests the nearest one.
    """
    name = name.lower()
    if name in _ENTRIES:
        return
    from lightning.pytorch.strategies import StrategyRegistry

    lightning_names = StrategyRegistry.available_strategies()
    if name in lightning_names or name == "auto":
        return
    raise ConfigurationError(
        f"There is no strategy named '{name}'.{did_you_mean(name, [*STRATEGY_NAMES, *lightning_names])} The names are "
        f"{', '.join(STRATEGY_NAMES)}; Lightning's own, such as fsdp, work too.",
        argument="strategy",
    )
