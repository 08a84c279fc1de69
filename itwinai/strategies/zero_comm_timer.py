"""How long a DeepSpeed engine waits for other workers, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from itwinai.profiling.step_timer import StepClock

OPERATIONS = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all_single",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class CollectiveTimer:
    """Tells a clock of all collective operations of DeepSpeed, until it is ended.

    All of them go through one object, its backend; the operations are replaced on that object.

    Args:
        clock: that of the training steps.
    """

    def __init__(self, clock: StepClock) -> None:
        from deepspeed.comm import comm

        self.clock = clock
        self.backend = comm.cdb
        # Some operations are methods of the class and some attributes of the object: each is put back as it was.
        self.originals = dict(vars(self.backend))
        self.replaced = [name for name in OPERATIONS if callable(getattr(self.backend, name, None))]
        for name in self.replaced:
            setattr(self.backend, name, self._timed(getattr(self.backend, name)))

    def end(self) -> None:
        """Put the operations back."""
        for name in self.replaced:
            if name in self.originals:
                setattr(self.backend, name, self.originals[name])
            else:
                delattr(self.backend, name)
        self.replaced = []

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter_ns()
            returned = operation(*args, **kwargs)
            now = perf_counter_ns()
            if hasattr(returned, "wait"):  # asynchronous: only the calls wait, the rest is hidden unless `wait` blocks
                self.clock.communicated(exposed=now - began, total=0)
                return _Handle(returned, began, self.clock)
            self.clock.communicated(exposed=now - began, total=now - began)
            return returned

        return timed


class _Handle:
    """The handle of an operation that continues beside the computation."""

    def __init__(self, handle: Any, began: int, clock: StepClock) -> None:
        self._handle = handle
        self._began = began
        self._clock = clock

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        waiting = perf_counter_ns()
        returned = self._handle.wait(*args, **kwargs)
        now = perf_counter_ns()
        self._clock.communicated(exposed=now - waiting, total=now - self._began)
        return returned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
