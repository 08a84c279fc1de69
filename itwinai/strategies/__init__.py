"""How gradients meet: DDP, DeepSpeed, Horovod; and Ray, whose workers run any of them.

Every class is imported when it is first used, so that a package that is not installed is missed only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.strategies.ddp import DDPStrategy
    from itwinai.strategies.deepspeed import DeepSpeedStrategy
    from itwinai.strategies.horovod import HorovodStrategy
    from itwinai.strategies.ray import RayStrategy

__all__ = ["DDPStrategy", "DeepSpeedStrategy", "HorovodStrategy", "RayStrategy"]

_MODULES = {
    "DDPStrategy": "itwinai.strategies.ddp",
    "DeepSpeedStrategy": "itwinai.strategies.deepspeed",
    "HorovodStrategy": "itwinai.strategies.horovod",
    "RayStrategy": "itwinai.strategies.ray",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'itwinai.strategies' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
