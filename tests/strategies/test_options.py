"""Arguments of strategies: editors know those that are passed on, and a wrong one is an error at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies import ParallelStrategy
from torch.nn.parallel import DistributedDataParallel

from itwinai.errors import UnknownArgumentError
from itwinai.strategies import DDPStrategy, DeepSpeedStrategy, HorovodStrategy, RayStrategy
from itwinai.strategies.options import DDPOptions, DeepSpeedOptions, ParallelOptions


def names(function: Callable[..., Any]) -> set[str]:
    """Return the names of a constructor's arguments."""
    return inspect.signature(function).parameters.keys() - {"self", "kwargs"}


def test_options_are_those_of_lightning() -> None:
    """Fails when a release of lightning adds or removes an argument: follow it in `itwinai.strategies.options`."""
    assert set(ParallelOptions.__annotations__) == names(ParallelStrategy.__init__)
    theirs = names(LightningDeepSpeedStrategy.__init__)
    assert set(DeepSpeedOptions.__annotations__) == theirs - names(DeepSpeedStrategy.__init__)
    assert set(DDPOptions.__annotations__) <= names(LightningDDPStrategy.__init__) | names(DistributedDataParallel)
    own = names(DDPStrategy.__init__) | {"start_method"}  # workers are started by our launchers
    assert names(LightningDDPStrategy.__init__) - own <= set(DDPOptions.__annotations__)


@pytest.mark.parametrize(
    ("strategy_class", "wrong", "meant"),
    [
        (DDPStrategy, "find_unused_parameter", "find_unused_parameters"),
        (DDPStrategy, "bucket_cap", "bucket_cap_mb"),
        (DeepSpeedStrategy, "offload_optimiser", "offload_optimizer"),
        (HorovodStrategy, "compresion", "compression"),
        (RayStrategy, "min_worker", "min_workers"),
    ],
)
def test_unknown_argument_names_the_nearest(strategy_class: type, wrong: str, meant: str) -> None:
    with pytest.raises(UnknownArgumentError, match=rf"no argument '{wrong}'\. Did you mean '{meant}'\?") as raised:
        strategy_class(**{wrong: 1})
    assert isinstance(raised.value, TypeError)


def test_options_reach_torch() -> None:
    strategy = DDPStrategy(bucket_cap_mb=7, broadcast_buffers=False)
    assert {"bucket_cap_mb": 7, "broadcast_buffers": False}.items() <= strategy._ddp_kwargs.items()
