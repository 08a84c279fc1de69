"""Pipelines: steps from one config, of which those run whose code, inputs, config or packages have changed.

Example:
    >>> from itwinai.pipelines import Pipeline
    >>> pipeline = Pipeline.from_yaml("pipeline.yaml")
    >>> print(pipeline.plan())
    >>> result = pipeline.run(jobs=2)
    >>> result.outputs["train"]["checkpoint"]
    PosixPath('runs/pipeline/train/checkpoints/epoch=4-step=160.ckpt')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.pipelines.outputs import OutputFolder as OutputFolder
    from itwinai.pipelines.pipeline import Pipeline as Pipeline
    from itwinai.pipelines.pipeline import PipelineResult as PipelineResult
    from itwinai.pipelines.planner import Plan as Plan

_WHERE = {"OutputFolder": "outputs", "Pipeline": "pipeline", "PipelineResult": "pipeline", "Plan": "planner"}

__all__ = ["OutputFolder", "Pipeline", "PipelineResult", "Plan"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"itwinai.pipelines.{_WHERE[name]}"), name)
