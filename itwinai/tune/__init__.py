"""Search for good hyperparameters: many trials, each with one or several workers, on one machine or a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.tune.tuner import SearchResult, Tuner

__all__ = ["SearchResult", "Tuner"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from itwinai.tune import tuner

        return getattr(tuner, name)
    raise AttributeError(f"module 'itwinai.tune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
