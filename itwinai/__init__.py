"""Run any LightningModule unchanged on DDP, DeepSpeed, Horovod or Ray, chosen by one flag.

Names are resolved when they are first used, so that ``import itwinai`` loads neither torch nor Lightning and changes
nothing in the process, unless ITWINAI_UNIFY_LIGHTNING asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from itwinai.quick_imports import importing_quickly
from itwinai.unify import unify_if_asked, unify_lightning

if TYPE_CHECKING:
    from itwinai.checks.checker import check
    from itwinai.predictor import Predictor
    from itwinai.trainer import ItwinaiTrainer

__version__ = "0.1.0"
_MODULES = {
    "ItwinaiTrainer": "itwinai.trainer",
    "Predictor": "itwinai.predictor",
    "check": "itwinai.checks.checker",
}
__all__ = ["ItwinaiTrainer", "Predictor", "__version__", "check", "unify_lightning"]

unify_if_asked()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        with importing_quickly():
            value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
    import difflib

    if name == "Trainer":  # Python keeps the text of an AttributeError from those who write `from itwinai import ...`
        raise ImportError("itwinai has no 'Trainer'. Did you mean 'ItwinaiTrainer'?", name="itwinai")
    meant = next(iter(difflib.get_close_matches(name, __all__, n=1)), None)
    hint = f" Did you mean '{meant}'?" if meant and not name.startswith("_") else ""
    raise AttributeError(f"module 'itwinai' has no attribute '{name}'.{hint}")


def __dir__() -> list[str]:
    return sorted(__all__)
