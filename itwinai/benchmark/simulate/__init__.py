"""Predict the time of a step on many workers from the time of one worker and the speed of the links."""

from __future__ import annotations

from itwinai.benchmark.simulate.prediction import Prediction, simulate
from itwinai.benchmark.simulate.strategy_models import StrategyModel
from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.benchmark.simulate.workload import Cores, Layer, Workload

__all__ = ["Cores", "Layer", "Link", "Prediction", "StrategyModel", "Topology", "Workload", "simulate"]
