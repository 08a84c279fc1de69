"""The strategy names that one flag chooses from, and what each stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

    from itwinai.strategies.ray import RayStrategy


def _ddp(**options: Any) -> Strategy:
    from itwinai.strategies.ddp import DDPStrategy

    return DDPStrategy(**options)


def _deepspeed(**options: Any) -> Strategy:
    from itwinai.strategies.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(**options)


def _horovod(**options: Any) -> Strategy:
    from itwinai.strategies.horovod import HorovodStrategy

    return HorovodStrategy(**options)


def _ray(inner: str) -> Callable[[], RayStrategy]:
    def make() -> RayStrategy:
        from itwinai.strategies.ray import RayStrategy

        return RayStrategy(inner)

    return make


_FACTORIES: dict[str, Callable[[], Strategy | RayStrategy]] = {
    "ddp": _ddp,
    "ddp_find_unused_parameters_true": lambda: _ddp(find_unused_parameters=True),
    "deepspeed": lambda: _deepspeed(stage=2),
    "deepspeed_stage_0": lambda: _deepspeed(stage=0),
    "deepspeed_stage_1": lambda: _deepspeed(stage=1),
    "deepspeed_stage_2": lambda: _deepspeed(stage=2),
    "deepspeed_stage_3": lambda: _deepspeed(stage=3),
    "horovod": _horovod,
    "ray": _ray("ddp"),
    "ray_ddp": _ray("ddp"),
    "ray_deepspeed": _ray("deepspeed"),
    "ray_horovod": _ray("horovod"),
}

STRATEGY_NAMES: tuple[str, ...] = tuple(_FACTORIES)


def make_strategy(name: str) -> Strategy | RayStrategy | None:
    """Make the strategy of a name.

    Args:
        name: one of `STRATEGY_NAMES`, or a name that lightning knows.

    Returns:
        The strategy, or None for a name that is left to lightning.

    Raises:
        ConfigurationError: nobody knows the name; the message holds the nearest one.
        MissingPackageError: the package behind the strategy is not installed.
    """
    check_strategy_name(name)
    factory = _FACTORIES.get(name.lower())
    return None if factory is None else factory()


def check_strategy_name(name: str) -> None:
    """Raise an error for a name that neither this package nor lightning knows.

    Raises:
        ConfigurationError: so it is; the message holds the nearest one.
    """
    name = name.lower()
    if name in _FACTORIES:
        return
    from lightning.pytorch.strategies import StrategyRegistry

    lightning_names = StrategyRegistry.available_strategies()
    if name in lightning_names or name == "auto":
        return
    raise ConfigurationError(
        f"There is no strategy named '{name}'.{did_you_mean(name, [*STRATEGY_NAMES, *lightning_names])} The names are "
        "ddp, deepspeed, deepspeed_stage_0 to deepspeed_stage_3, horovod, ray, ray_deepspeed and ray_horovod; "
        "lightning's own, such as fsdp, work too.",
        argument="strategy",
    )
