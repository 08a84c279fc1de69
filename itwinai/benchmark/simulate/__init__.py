"""Steps of more workers than there are: predicted from what one worker takes, and from what the links carry."""

from __future__ import annotations

from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.benchmark.simulate.prediction import Prediction, simulate
from itwinai.benchmark.simulate.workload import Cores, Exchange, Layer, Workload

__all__ = ["Cores", "Exchange", "Layer", "Link", "Prediction", "Topology", "Workload", "simulate"]
