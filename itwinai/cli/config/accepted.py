"""The names that arguments of the trainer accept where their type says only that they are text."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.strategies import StrategyRegistry

from itwinai import plugins
from itwinai.loggers.registry import LOGGERS
from itwinai.strategies.registry import STRATEGY_NAMES

LISTS = ("trainer.logger",)
"""Arguments that take several names with commas between them."""


def accepted_names() -> Mapping[str, tuple[str, ...]]:
    """Return the names that arguments accept, by argument, those of plugins included."""
    strategies = [plugin.name for plugin in plugins.find_plugins(plugins.STRATEGIES)]
    loggers = [plugin.name for plugin in plugins.find_plugins(plugins.LOGGERS)]
    lightnings = StrategyRegistry.available_strategies()
    return {
        "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
        "trainer.strategy": tuple(dict.fromkeys(["auto", *STRATEGY_NAMES, *strategies, *lightnings])),
        "trainer.logger": tuple(dict.fromkeys([*LOGGERS, *loggers])),
        "trainer.gradient_clip_algorithm": ("norm", "value"),
        "trainer.profiler": ("simple", "advanced", "pytorch"),
    }
