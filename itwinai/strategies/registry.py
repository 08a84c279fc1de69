"""The strategy names that one flag chooses from, what each stands for, and what the rest of the package asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.plugins import STRATEGIES, Plugin, find_plugin, find_plugins

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

    A package adds a name with an entry point of the group ``itwinai.strategies`` whose value is such an entry.

    Attributes:
        name: what you write after ``--strategy``.
        class_path: the class that it stands for, as ``package.module.Class``. It is imported when it is made.
        options: the arguments that the class gets.
        packages: import names of the optional packages that it needs.
        zero_stage: how much of the training state is sharded over the workers: ZeRO's stage (Rajbhandari et al., 2020,
            arXiv:1910.02054); 0 for strategies that keep everything on every worker.
        overlaps_backward: whether workers exchange gradients while backward still computes others. itwinai lets
            DeepSpeed's stages 0 and 1 exchange in the optimizer's step.
        uses_ray: whether workers are Ray actors, so that GPUs and CPUs are those of a cluster, not of this machine.
        deviation: how the weights differ from those of one process, in words, as "averages weights every 8 steps".
            Empty promises the same weights, which `itwinai doctor` checks. An entry of a plugin has to state it.
    """

    name: str
    class_path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    zero_stage: int = 0
    overlaps_backward: bool = True
    uses_ray: bool = False
    deviation: str | None = None

    def make(self) -> Strategy:
        """Make the strategy.

        Raises:
            MissingPackageError: a package that it needs is not installed.
        """
        module, _, name = self.class_path.rpartition(".")
        strategy: Strategy = getattr(import_module(module), name)(**self.options)
        return strategy


_OURS = "itwinai.strategies"


def _deepspeed(name: str, stage: int) -> StrategyEntry:
    return StrategyEntry(
        name, f"{_OURS}.DeepSpeedStrategy", {"stage": stage}, ("deepspeed",), stage, overlaps_backward=stage >= 2
    )


def _ray(name: str, inner: StrategyEntry) -> StrategyEntry:
    return StrategyEntry(
        name,
        f"{_OURS}.RayStrategy",
        {"strategy": inner.name},
        (*inner.packages, "ray"),
        inner.zero_stage,
        inner.overlaps_backward,
        uses_ray=True,
        deviation=inner.deviation,
    )


_DDP = StrategyEntry("ddp", f"{_OURS}.DDPStrategy")
_DEEPSPEED = _deepspeed("deepspeed", stage=2)
_HOROVOD = StrategyEntry("horovod", f"{_OURS}.HorovodStrategy", packages=("horovod",))

# To add a strategy, write its class into a file of this folder, name it in `itwinai.strategies`, and add an entry.
_ENTRIES = {
    entry.name: entry
    for entry in (
        _DDP,
        StrategyEntry("ddp_find_unused_parameters_true", f"{_OURS}.DDPStrategy", {"find_unused_parameters": True}),
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
            than those of the entry. Plugins are known by their names.

    Raises:
        PluginError: the name is that of a plugin which cannot be used.
    """
    if isinstance(strategy, str):
        return _ENTRIES.get(strategy.lower()) or _entry_of_plugin(strategy.lower())
    if isinstance(strategy, Mapping):
        class_name = str(strategy.get("class_path", "")).rpartition(".")[2]
        return next((one for one in _ENTRIES.values() if one.class_path.rpartition(".")[2] == class_name), None)
    return _ENTRIES.get(getattr(strategy, "strategy_name", "").lower())


def uses_ray(strategy: object) -> bool:
    """Return whether the workers of a strategy are Ray actors.

    Args:
        strategy: as for `find_entry`.
    """
    if not isinstance(strategy, (str, Mapping)):  # RayStrategy says so in its name, whatever is inside
        return getattr(strategy, "strategy_name", "").startswith("ray")
    entry = None if strategy == "auto" else find_entry(strategy)
    return entry is not None and entry.uses_ray


def make_strategy(name: str) -> Strategy | None:
    """Make the strategy of a name.

    Args:
        name: one of `STRATEGY_NAMES`, or a name that lightning or a plugin knows.

    Returns:
        The strategy, or None for a name that is left to Lightning.

    Raises:
        ConfigurationError: the name is unknown; the message suggests the nearest one.
        PluginError: the name is that of a plugin which cannot be used.
        MissingPackageError: the package behind the strategy is not installed.
    """
    entry = check_strategy_name(name)
    return None if entry is None else entry.make()


def check_strategy_name(name: str) -> StrategyEntry | None:
    """Return the entry of a name, None if it is lightning's; raise an error for an unknown name.

    Raises:
        ConfigurationError: the name is unknown; the message suggests the nearest one.
        PluginError: the name is that of a plugin which cannot be used.
    """
    name = name.lower()
    if name in _ENTRIES:
        return _ENTRIES[name]
    from lightning.pytorch.strategies import StrategyRegistry

    lightning_names = StrategyRegistry.available_strategies()
    if name in lightning_names or name == "auto":
        return None
    if entry := _entry_of_plugin(name):
        return entry
    names = [*STRATEGY_NAMES, *(plugin.name for plugin in find_plugins(STRATEGIES))]
    raise ConfigurationError(
        f"There is no strategy named '{name}'.{did_you_mean(name, [*names, *lightning_names])} The names are "
        f"{', '.join(dict.fromkeys(names))}; Lightning's own, such as fsdp, work too.",
        argument="strategy",
    )


def entry_of(plugin: Plugin) -> StrategyEntry:
    """Return the entry of a plugin.

    Raises:
        PluginError: it cannot be loaded, or is no entry of that name, or does not say what it promises.
    """
    entry = plugin.load()
    if not isinstance(entry, StrategyEntry):
        raise plugin.error(f"{plugin.value} is {_article(entry)}, and not a StrategyEntry")
    if plugin.name != plugin.name.lower():
        raise plugin.error("names of strategies are in lower case")
    if entry.name != plugin.name:
        raise plugin.error(f"the entry's name is '{entry.name}'; the entry point and the entry have to agree")
    if entry.deviation is None:
        raise plugin.error(
            "the entry does not say what it promises: deviation='' for the weights of one process, or in words how "
            "they differ"
        )
    return entry


def _article(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _entry_of_plugin(name: str) -> StrategyEntry | None:
    """Return the entry of a name that a plugin adds, or of ``ray_`` before such a name."""
    plugin = find_plugin(STRATEGIES, name)
    if plugin is not None:
        return entry_of(plugin)
    inner = name.removeprefix("ray_")
    inside = _entry_of_plugin(inner) if inner not in (name, *_ENTRIES) else None
    return None if inside is None else _ray(name, inside)
